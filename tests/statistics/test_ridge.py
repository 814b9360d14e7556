"""Ridge against least squares on the augmented system, with clusters really left out."""

import numpy as np
import pytest

from mechforget.statistics.ridge import PENALTIES, ridge


def augmented(x, y, penalty):
    """x -> ŷ by numpy's lstsq on rows that pull the weights, not the intercept, towards 0."""
    n, d = x.shape
    top = np.concatenate([x, np.ones((n, 1))], 1)
    pull = np.concatenate([np.sqrt(penalty) * np.eye(d), np.zeros((d, 1))], 1)
    w, *_ = np.linalg.lstsq(
        np.concatenate([top, pull]), np.concatenate([y, np.zeros((d, y.shape[1]))]), rcond=None
    )
    return lambda z: z @ w[:-1] + w[-1]


@pytest.mark.parametrize(("n", "d", "noise"), [(30, 6, 0.1), (30, 6, 5.0), (24, 80, 0.5)])
def test_equals_lstsq_and_leaving_clusters_out(n, d, noise):
    """Catches a penalised intercept, a penalty of another scale, an error of single rows."""
    rng = np.random.default_rng(d)
    cluster = rng.permutation(np.arange(n) % 9)
    x = rng.normal(size=(n, d)) + 3
    x[:, 0] += 5 * rng.normal(size=9)[cluster]
    y = x @ rng.normal(size=(d, 4)) + noise * rng.normal(size=(9, 4))[cluster] - 7
    found = ridge(x, y, cluster)
    size = ((x - x.mean(0)) ** 2).sum() / n
    errors = []
    for penalty in size * PENALTIES:
        total = 0
        for c in range(9):
            out = cluster == c
            total += ((augmented(x[~out], y[~out], penalty)(x[out]) - y[out]) ** 2).sum()
        errors.append(total)
    np.testing.assert_allclose(found.penalty, size * PENALTIES[np.argmin(errors)])
    z = rng.normal(size=(7, d))
    np.testing.assert_allclose(found(z), augmented(x, y, found.penalty)(z), atol=1e-8)


def test_equal_rows_give_the_mean():
    """Catches 0 / 0."""
    y = np.arange(12.0).reshape(6, 2)
    found = ridge(np.full((6, 3), 0.1), y, np.arange(6))
    np.testing.assert_allclose(found(np.ones((1, 3))), [y.mean(0)])
