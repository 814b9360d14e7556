"""Spearman's rho with whole groups resampled: against scipy, list by list."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from mechforget.statistics import correlation
from mechforget.statistics.correlation import rank_correlation


def lists(n=24, seed=0, values=7):
    """With ties; the second follows the first by half."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, values, n).astype(float)
    return a, a + rng.integers(0, values, n), np.arange(n) // 4


@pytest.mark.parametrize("values", [3, 7, 10_000])
def test_it_is_scipys_and_takes_entries_several_times(values):
    """Would catch: ties ranked by place, and a draw's repeated entries that are ranked once."""
    a, b, group = lists(values=values)
    a[3], b[9] = np.nan, np.inf
    rho, low, high, n = rank_correlation(a, b, group)
    both = np.isfinite(a) & np.isfinite(b)
    assert n == both.sum() == 22
    assert rho == pytest.approx(spearmanr(a[both], b[both])[0], abs=1e-12)
    assert -1 <= low < rho < high <= 1
    a, b = a[both], b[both]
    times = np.random.default_rng(1).integers(0, 4, (5, n))
    got = correlation._rho(a, b, times)
    want = [spearmanr(np.repeat(a, k), np.repeat(b, k))[0] for k in times]
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_groups_are_what_is_resampled():
    """Would catch: an interval that shrinks when each entry is there four times."""
    a, b, _ = lists(n=12)
    once = rank_correlation(a, b, np.arange(12))
    again = rank_correlation(a.repeat(4), b.repeat(4), np.arange(12).repeat(4))
    np.testing.assert_allclose(once[:3], again[:3], atol=1e-12)


def test_what_has_no_correlation():
    """Would catch: a constant list that gets a number, and an interval of two groups."""
    a, b, group = lists()
    assert np.isnan(rank_correlation(np.ones(24), b, group)[:3]).all()
    assert np.isnan(rank_correlation(a[:2], b[:2], group[:2])[:3]).all()
    rho, low, high, _ = rank_correlation(a, b, group > 2)
    assert np.isfinite(rho) and np.isnan(low) and np.isnan(high)
