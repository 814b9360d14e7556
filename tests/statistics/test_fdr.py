"""Benjamini-Hochberg on the example of its paper, and which p values are corrected together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechforget.statistics import q_values

NAN = float("nan")
PAPER = [  # Benjamini & Hochberg 1995, section 3.2: four are rejected at 0.05, Bonferroni's three
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
    *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0),
]


def by_definition(p):
    """q_i = min over p_j >= p_i of m p_j / rank_j, by loops."""
    m = len(p)
    return [min(m * x / sum(y <= x for y in p) for x in p if x >= one) for one in p]


def test_the_papers_example():
    """Catches no correction (nine rejected), Bonferroni (three), Benjamini-Yekutieli (three)."""
    q = q_values(PAPER, axes=(0,))
    assert (q <= 0.05).tolist() == [True] * 4 + [False] * 11
    np.testing.assert_allclose(q, by_definition(PAPER), rtol=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12))
def test_equals_the_definition(twentieths):
    """Catches ties and order mishandled."""
    p = np.array(twentieths) / 20
    np.testing.assert_allclose(q_values(p, (0,)), by_definition(p.tolist()), rtol=1e-12)


def test_families_are_apart():
    """Catches one family over metrics and directions, and axes moved back wrongly."""
    p = np.random.default_rng(0).random((3, 2, 4, 5))
    q = q_values(p, (-2, -1))
    for i in range(3):
        for j in range(2):
            want = np.reshape(by_definition(p[i, j].ravel().tolist()), (4, 5))
            np.testing.assert_allclose(q[i, j], want, rtol=1e-12)
    np.testing.assert_allclose(
        q_values(p, (0, 3)).swapaxes(0, 1)[0, :, 1].ravel(),
        by_definition(p[:, 0, 1].ravel().tolist()),
        rtol=1e-12,
    )


def test_missing_are_not_tested():
    """Catches heads that were not run counted in m: four tests here, not six."""
    p = [[0.01, NAN, 0.04], [0.03, NAN, 0.5]]
    np.testing.assert_allclose(
        q_values(p, (0, 1)), [[0.04, NAN, 0.16 / 3], [0.16 / 3, NAN, 0.5]], rtol=1e-12
    )
    assert np.isnan(q_values([[NAN, NAN]], (-1,))).all()


def test_families_of_one():
    """Catches a correction where there is nothing to correct for."""
    np.testing.assert_array_equal(q_values([[0.01, 0.5], [NAN, 1.0]], ()), [[0.01, 0.5], [NAN, 1]])
    assert q_values(0.02, ()) == 0.02
    assert q_values(np.ones((2, 0)), (-1,)).shape == (2, 0)


def test_no_probability():
    """Catches q of something that is no p."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        q_values([0.5, 1.5], (0,))
