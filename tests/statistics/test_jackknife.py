"""Jackknife intervals against scipy's t intervals and their own coverage."""

import numpy as np
import pytest
from scipy import stats

from mechforget.statistics import jackknife

NAN = float("nan")


def without_each(x):
    return np.array([np.delete(x, i, -1).mean(-1) for i in range(x.shape[-1])]).T


@pytest.mark.parametrize("n", [8, 15, 40])
def test_of_a_mean_it_is_the_t_interval(n):
    """Catches a factor of n - 1, normal instead of t quantiles, one-sided ends."""
    x = np.random.default_rng(n).exponential(size=(3, n))
    found = jackknife(x.mean(-1), without_each(x))
    want = stats.t.interval(0.95, n - 1, x.mean(-1), stats.sem(x, axis=-1))
    np.testing.assert_allclose([found.low, found.high], want, rtol=1e-12)


def test_of_two_samples_variances_add():
    """Catches one sample forgotten: the difference of two means, unequal variances, fewer t."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=12), 3 * rng.normal(size=20)
    found = jackknife(x.mean() - y.mean(), without_each(x) - y.mean(), x.mean() - without_each(y))
    half = stats.t.ppf(0.975, 11) * np.hypot(stats.sem(x), stats.sem(y))
    np.testing.assert_allclose(found.high - found.low, 2 * half, rtol=1e-12)


def test_few_constant_and_missing():
    """Catches an interval from 7 clusters, a width of rounding where nothing varies, a number
    from an estimate that has none without some cluster."""
    x = np.arange(7.0)
    assert np.isnan(jackknife(x.mean(), without_each(x))[1:]).all()
    tenth = np.full(10, 0.1)
    assert jackknife(0.1, tenth + 1e-17) == (0.1, 0.1, 0.1)
    x = np.append(np.arange(9.0), NAN)
    assert np.isnan(jackknife(1.0, x)[1:]).all()
