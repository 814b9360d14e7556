"""BCa intervals against scipy's, draw for draw; their coverage; the unit that is resampled."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mechforget.errors import MeasureError
from mechforget.statistics import caveat, interval

NAN = float("nan")


def scipys(values, cluster, over=None, *, method="BCa", n_resamples=2000, seed=0, level=0.95):
    """One row through scipy.stats.bootstrap: it resamples cluster numbers, sums come by loop."""
    over = np.ones(len(values)) if over is None else over
    both = [(v, o, c) for v, o, c in zip(values, over, cluster, strict=True) if v == v and o == o]
    ids = sorted({c for _, _, c in both})
    top = np.array([sum(v for v, _, c in both if c == i) for i in ids])
    bottom = np.array([sum(o for _, o, c in both if c == i) for i in ids])

    def statistic(drawn, axis):
        return top[drawn].sum(axis) / bottom[drawn].sum(axis)

    result = stats.bootstrap(
        (np.arange(len(ids)),),
        statistic,
        vectorized=True,
        method=method,
        n_resamples=n_resamples,
        confidence_level=level,
        rng=np.random.default_rng(seed),
    )
    return [top.sum() / bottom.sum(), *result.confidence_interval]


def case(seed, rows=4, clusters=15):
    """Skewed values in clusters of 1 to 4 prompts that move together, some prompts missing."""
    rng = np.random.default_rng(seed)
    cluster = np.repeat(rng.permutation(clusters), rng.integers(1, 5, clusters))
    shared = rng.exponential(size=(rows, clusters))[:, cluster]
    values = shared + 0.3 * rng.normal(size=shared.shape)
    values[rng.random(values.shape) < 0.1] = NAN
    return values, cluster, 2 + shared.mean(0) + 0.1 * rng.normal(size=len(cluster))


@pytest.mark.parametrize("seed", range(4))
def test_mean_equals_scipy(seed):
    """Catches percentile or basic instead of BCa, prompts resampled instead of clusters, a mean
    of cluster means, resamples that rows do not share. Same draws, so only rounding differs."""
    values, cluster, _ = case(seed)
    got = np.stack(interval(values, cluster, seed=seed), -1)
    want = [scipys(row, cluster, seed=seed) for row in values]
    np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_ratio_equals_scipy(seed):
    """Catches a mean of ratios, and a denominator that is held fixed or resampled on its own."""
    values, cluster, over = case(seed)
    over[3] = NAN
    got = np.stack(interval(values, cluster, over=over, seed=seed), -1)
    want = [scipys(row, cluster, over, seed=seed) for row in values]
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_settings_reach_scipy_the_same_way():
    """Catches a level or number of resamples that is ignored."""
    values, cluster, _ = case(5)
    options: dict[str, Any] = dict(level=0.8, n_resamples=333, seed=9)
    got = np.stack(interval(values, cluster, **options), -1)
    np.testing.assert_allclose(got, [scipys(row, cluster, **options) for row in values], rtol=1e-10)


def test_batches_do_not_change_the_result(monkeypatch):
    """Catches rows lost at the seam of two batches."""
    values, cluster, _ = case(6, rows=7)
    whole = interval(values, cluster)
    monkeypatch.setattr("mechforget.statistics.bootstrap.BATCH", 3 * 2000)
    np.testing.assert_array_equal(whole, interval(values, cluster))


def test_leading_axes_are_independent():
    """Catches axes mixed up in flattening, and results that depend on what else is asked."""
    values, cluster, over = case(7, rows=6)
    all_of_them = interval(values.reshape(2, 3, -1), cluster, over=over)
    for i in range(6):
        alone = interval(values[i], cluster, over=over)
        np.testing.assert_allclose(
            [x[i // 3, i % 3] for x in all_of_them], [float(x) for x in alone], rtol=1e-12
        )


SIZES = np.random.default_rng(0).integers(1, 6, 60)  # prompts in each of 60 clusters
RUNS = 2000
# Binomial error of a coverage of 0.95 over RUNS data sets; all share one set of 2000 resamples,
# whose two 2.5 % quantiles are off by their own binomial error; BCa itself is off by O(1/n).
BOUND = 3 * np.sqrt(0.95 * 0.05 / RUNS + 2 * 0.025 * 0.975 / 2000) + 1 / len(SIZES)


def coverage(ends, truth):
    return np.mean((ends.low <= truth) & (truth <= ends.high))


def test_coverage_on_skewed_clusters():
    """Catches prompts taken as the unit (covers two thirds), one-sided or 90 % ends."""
    rng = np.random.default_rng(1)
    cluster = np.repeat(np.arange(60), SIZES)
    values = rng.exponential(size=(RUNS, 60))[:, cluster] + rng.normal(size=(RUNS, len(cluster)))
    assert abs(coverage(interval(values, cluster), 1.0) - 0.95) < BOUND
    as_prompts = interval(values, np.arange(len(cluster)))
    assert coverage(as_prompts, 1.0) < 0.95 - BOUND  # the simulation can tell


def test_coverage_of_a_share():
    """Catches a share whose parts are resampled apart: its interval would always cover."""
    rng = np.random.default_rng(2)
    cluster = np.arange(60)
    forgetting = 1 + rng.exponential(size=(RUNS, 60))
    effect = 0.4 * forgetting + 0.2 * rng.normal(size=(RUNS, 60))
    assert abs(coverage(interval(effect, cluster, over=forgetting), 0.4) - 0.95) < BOUND


def test_duplicated_prompts_do_not_shrink_the_interval():
    """Catches prompts taken as the unit: copies would count as evidence."""
    x = np.random.default_rng(3).normal(size=12)
    once = interval(x, np.arange(12))
    five = interval(np.tile(x, 5), np.tile(np.arange(12), 5))
    np.testing.assert_allclose(once, five, rtol=1e-12)
    apart = interval(np.tile(x, 5), np.arange(60))
    assert apart.high - apart.low < (once.high - once.low) / 2  # about 1/√5: the test can tell


def test_constant_values_have_no_width():
    """Catches NaN (scipy's answer) and ends off by rounding: in clusters of 1 to 5 prompts sums of
    0.1 are not all five times one."""
    rng = np.random.default_rng(10)
    cluster = np.repeat(np.arange(20), rng.integers(1, 6, 20))
    x = np.array([0.0, 0.1, -1e6 / 3, *rng.normal(size=50)])
    estimate, low, high = interval(np.tile(x[:, None], len(cluster)), cluster)
    np.testing.assert_array_equal(low, estimate)
    np.testing.assert_array_equal(high, estimate)
    np.testing.assert_allclose(estimate, x, rtol=1e-13)


def test_constant_ratio_has_no_width():
    """Catches a share of exactly 30 % everywhere whose interval is that of the forgetting."""
    over = np.random.default_rng(4).exponential(size=20)
    estimate, low, high = interval(0.3 * over, np.arange(20), over=over)
    assert low == high == estimate == pytest.approx(0.3, rel=1e-14)


def test_constant_within_cluster_means_only():
    """Catches 'constant' judged on prompts: here every cluster's mean is 2."""
    _, low, high = interval(np.tile([1.0, 3.0], 10), np.repeat(np.arange(10), 2))
    assert low == high == 2


def test_spread_far_below_the_mean_is_kept():
    """Catches a tolerance for constants so wide that it swallows real differences."""
    x = np.random.default_rng(5).normal(size=30)
    plain, lifted = interval(x, np.arange(30)), interval(1e8 + x, np.arange(30))
    # float64 holds 1e8 to 1.5e-8, and a sum of 30 such to 30 times that
    np.testing.assert_allclose(np.array(lifted) - 1e8, plain, atol=5e-7)


def test_below_eight_clusters_no_interval():
    """Catches n counted in prompts, an estimate that goes missing with its interval."""
    values = np.random.default_rng(6).normal(size=(2, 40))
    for n, given_one in ((7, False), (8, True)):
        estimate, low, high = interval(values, np.arange(40) % n)
        np.testing.assert_allclose(estimate, values.mean(-1))
        assert np.isfinite(low).all() == np.isfinite(high).all() == given_one


def test_missing_prompts_count_for_each_row():
    """Catches one row's missing prompts taken for all: 7 clusters here, 10 there, 0 there."""
    values = np.random.default_rng(7).normal(size=(3, 10))
    values[1, :3] = NAN
    values[2] = NAN
    estimate, low, _ = interval(values, np.arange(10))
    np.testing.assert_array_equal(np.isnan(low), [False, True, True])
    np.testing.assert_array_equal(np.isnan(estimate), [False, False, True])
    assert low[0] == interval(values[0], np.arange(10)).low


def test_all_resamples_on_one_side_falls_back_to_percentile():
    """Catches NaN where scipy gives NaN: two resamples lie on one side half of the time."""
    x = np.random.default_rng(8).exponential(size=10)
    sides = set()
    for seed in range(10):
        options: dict[str, Any] = dict(n_resamples=2, seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # scipy's 0/0, and that it says so
            bca = scipys(x, range(10), **options)
        degenerate = np.isnan(bca[1:]).any()
        sides.add(degenerate)
        want = scipys(x, range(10), method="percentile", **options) if degenerate else bca
        np.testing.assert_allclose(interval(x, np.arange(10), **options), want, rtol=1e-10)
    assert sides == {True, False}


def test_denominator_that_may_be_zero_gives_no_interval():
    """Catches the nonsense of a ratio whose denominator's sign is anyone's guess."""
    rng = np.random.default_rng(9)
    effect, noise = rng.normal(size=(2, 30))
    estimate, low, high = interval(effect, np.arange(30), over=noise)
    assert estimate == pytest.approx(effect.sum() / noise.sum())
    assert np.isnan([low, high]).all()
    assert np.isnan(interval(effect, np.arange(30), over=np.zeros(30))).all()
    assert np.isnan(interval(effect, np.arange(30), over=np.eye(30)[0]).low)  # may not be drawn
    assert np.isfinite(interval(effect, np.arange(30), over=noise - 5)).all()  # negative is fine


integers = st.lists(st.integers(-20, 20), min_size=9, max_size=24)


@settings(deadline=None, max_examples=50)
@given(integers, st.sampled_from([-3.0, 0.1, 7.0]), st.sampled_from([0.0, 0.3, 100.0]))
def test_equivariance(x, scale, shift):
    """Catches ends that swap sides or a tie broken by rounding: integers tie often."""
    x, cluster = np.array(x, float), np.arange(len(x))
    before = np.array(interval(x, cluster, n_resamples=200))
    after = np.array(interval(scale * x + shift, cluster, n_resamples=200))
    want = scale * before + shift
    if scale < 0:
        want[1:] = want[:0:-1]
    np.testing.assert_allclose(after, want, atol=1e-9 * (1 + abs(want).max()))


@settings(deadline=None, max_examples=50)
@given(integers, st.randoms(use_true_random=False))
def test_order_of_prompts_does_not_matter(x, random):
    """Catches positions taken for clusters."""
    cluster = np.arange(len(x)) * 2 // 3  # clusters of one and two
    order = list(range(len(x)))
    random.shuffle(order)
    before = np.array(interval(x, cluster, n_resamples=200))
    after = np.array(interval(np.array(x)[order], cluster[order], n_resamples=200))
    np.testing.assert_allclose(after, before, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(integers)
def test_ends_are_ordered_and_within_the_data(x):
    """Catches quantiles beyond the resamples: a mean never leaves the range of its values."""
    _, low, high = interval(x, np.arange(len(x)), n_resamples=200)
    assert min(x) - 1e-9 <= low <= high <= max(x) + 1e-9


def test_infinite_values_are_refused():
    """Catches an interval from [-inf, ...]."""
    with pytest.raises(MeasureError, match="infinite"):
        interval([1.0, -np.inf], [0, 1])


def test_caveat():
    """Catches thresholds off by one."""
    assert caveat(7) == "no intervals: 7 distinct prompts, 8 are needed"
    assert caveat(8) == caveat(19).replace("19", "8") != ""
    assert caveat(19) == "intervals run short: 19 distinct prompts, 20 are wanted"
    assert caveat(20) == ""
