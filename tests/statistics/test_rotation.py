"""Orthogonal Procrustes against scipy's, and what it does where the rows say nothing."""

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from mechforget.statistics.rotation import rotation


def test_equals_scipy_where_rows_suffice():
    """Catches the transpose, a missing mean, a scale."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 12)) + 4
    y = x @ ortho_group.rvs(12, random_state=1) + 0.5 * rng.normal(size=(80, 12)) - 2
    found = rotation(x, y)
    r, _ = orthogonal_procrustes(x - x.mean(0), y - y.mean(0))
    z = rng.normal(size=(5, 12))
    assert found.k == 12
    np.testing.assert_allclose(found(z), (z - x.mean(0)) @ r + y.mean(0), atol=1e-2)


def test_few_rows_turn_few_directions():
    """Catches a fit of all d directions to n < d rows. What lies in the k directions is turned
    right, although the rows are a twentieth of the dimensions; distances stay."""
    rng = np.random.default_rng(2)
    basis = ortho_group.rvs(200, random_state=3)
    turn = ortho_group.rvs(200, random_state=4)
    scale = np.r_[np.full(6, 10.0), np.full(194, 1e-3)]
    x, new = (rng.normal(size=(n, 200)) * scale @ basis for n in (40, 9))
    found = rotation(x, x @ turn)
    assert found.k == 8
    apart = found(new) - new @ turn
    assert np.linalg.norm(apart) < 2e-2 * np.linalg.norm(new)
    before, after = (np.linalg.norm(m[1:] - m[0], axis=1) for m in (new, found(new)))
    np.testing.assert_allclose(before, after)


def test_equal_sets_give_the_identity():
    """Catches directions that few rows don't reach, dropped or turned at random."""
    rng = np.random.default_rng(5)
    x, z = rng.normal(size=(40, 200)), rng.normal(size=(9, 200))
    np.testing.assert_allclose(rotation(x, x)(z), z, atol=1e-9)
    flat = np.ones((40, 200))
    np.testing.assert_allclose(rotation(flat, flat + 1)(z), z + 1)
