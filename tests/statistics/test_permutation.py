"""Sign flips against scipy's exact test and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mechforget.statistics import enough_for, sign_flip, smallest_p
from mechforget.statistics.permutation import EXACT

NAN = float("nan")


def scipys(x):
    """scipy's exact two-sided sign-flip test of one sample of cluster sums."""
    x = np.asarray(x, float)
    enough = 2 ** (len(x) + 1)  # flips for scipy to go through all
    return stats.permutation_test(
        (x,), np.sum, permutation_type="samples", n_resamples=enough
    ).pvalue


@pytest.mark.parametrize("n", [2, 5, 8, 11])
def test_equals_scipys_exact_test(n):
    """Catches one-sided p, ties left out, a half of the flips forgotten, (+1) in an exact p."""
    rng = np.random.default_rng(n)
    rows = np.concatenate(
        [
            rng.normal(0.5, 1, (4, n)),
            rng.integers(-3, 4, (4, n)),  # ties and zeros
            rng.integers(-3, 4, (4, n)) / 10,  # ties that rounding would break
        ]
    )
    rows[0] = -abs(rows[0])
    np.testing.assert_array_equal(sign_flip(rows, np.arange(n)), [scipys(x) for x in rows])


def test_clusters_flip_as_one():
    """Catches prompts flipped on their own: copies would make a p of 2^-20 of one of 2^-4."""
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(7), [1, 2, 3, 1, 4, 1, 2])
    values = rng.normal(0.3, 1, len(cluster))
    sums = [values[cluster == i].sum() for i in range(7)]
    assert sign_flip(values, cluster) == scipys(sums)
    copied = np.ones(20)
    assert sign_flip(copied, np.arange(20) % 5) == 2.0**-4


@pytest.mark.parametrize("n", [1, 8, 23, EXACT])
def test_smallest_p_is_reached(n):
    """Catches a floor of p that is off by a factor two, and exactness lost near the limit."""
    assert sign_flip(np.linspace(1, 2, n), np.arange(n)) == smallest_p(n) == 2.0 ** (1 - n)
    assert sign_flip(-np.linspace(1, 2, n), np.arange(n)) == 2.0 ** (1 - n)


@pytest.mark.parametrize("n", [EXACT - 1, EXACT])
def test_equals_the_binomial_sign_test(n):
    """Catches pairs miscounted between the two halves: with values ±1 the flips are coin tosses,
    and every p is a tail of the binomial, where all is ties."""
    rows = np.array([[-1.0] * k + [1.0] * (n - k) for k in range(n // 2 + 1)])
    want = np.array([stats.binomtest(k, n).pvalue for k in range(n // 2 + 1)])
    np.testing.assert_allclose(sign_flip(rows, np.arange(n)), want, rtol=1e-12)
    np.testing.assert_allclose(sign_flip(0.1 * rows, np.arange(n)), want, rtol=1e-12)


def test_random_flips_agree_with_the_binomial():
    """Catches a biased coin, one-sided counts, ties lost: 60 clusters, 10 000 flips."""
    ks = np.array([20, 22, 24, 26, 28, 30])
    rows = np.array([[-1.0] * k + [1.0] * (60 - k) for k in ks])
    want = np.array([stats.binomtest(k, 60).pvalue for k in ks])
    error = np.sqrt(want * (1 - want) / 10_000) + 1e-4  # binomial, and the +1
    assert (abs(sign_flip(0.1 * rows, np.arange(60)) - want) < 4 * error).all()


def test_random_flips_agree_with_the_exact_test():
    """Catches a random path of another statistic: clusters of value 0 change no exact p."""
    x = np.random.default_rng(3).exponential(size=(5, 11)) - 0.6
    padded = np.concatenate([x, np.zeros((5, 30))], axis=1)
    want = np.array([scipys(row) for row in x])
    error = np.sqrt(want * (1 - want) / 10_000) + 1e-4
    assert (abs(sign_flip(padded, np.arange(41)) - want) < 4 * error).all()


def test_number_of_random_flips():
    """Catches too few flips for the family, and p = 0. The best p is 1 / (1 + flips)."""
    agree = np.ones((2, 60))
    np.testing.assert_array_equal(sign_flip(agree, np.arange(60)), 1 / 10_001)
    np.testing.assert_array_equal(sign_flip(agree, np.arange(60), family=300), 1 / 12_001)
    np.testing.assert_array_equal(sign_flip(np.ones((300, 60)), np.arange(60)), 1 / 12_001)


def test_random_flips_follow_the_seed():
    """Catches a seed that is ignored, and a result that does not repeat."""
    x = np.random.default_rng(4).normal(0.2, 1, 40)
    first, again, other = (float(sign_flip(x, np.arange(40), seed=s)) for s in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("n", [12, 40])
def test_batches_do_not_change_the_result(n, monkeypatch):
    """Catches rows or flips lost at the seam of two batches."""
    x = np.random.default_rng(5).normal(0.2, 1, (7, n))
    whole = sign_flip(x, np.arange(n))
    monkeypatch.setattr("mechforget.statistics.permutation.BATCH", 200)
    cut = sign_flip(x, np.arange(n))
    # the coins fall elsewhere in other batches: two estimates of one p from 10 000 flips each
    bound = 0 if n <= EXACT else 4 * np.sqrt(2 * 0.25 / 10_000)
    assert (abs(whole - cut) <= bound).all()


@pytest.mark.parametrize("n", [10, 40])
def test_zeros_and_missing(n):
    """Catches p = 2 or 0 for no change at all, and a p for what was never measured."""
    values = np.zeros((3, n))
    values[1] = NAN
    values[2, : n // 2] = NAN
    np.testing.assert_array_equal(sign_flip(values, np.arange(n)), [1, NAN, 1])


def test_missing_clusters_do_not_count():
    """Catches n that includes clusters without values: 6 remain, so 2^-5 at best."""
    values = np.array([1.0] * 6 + [NAN] * 30)
    assert sign_flip(values, np.arange(36)) == 2.0**-5


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=12), st.sampled_from([-1.0, -0.1, 7.3]))
def test_scale_sign_and_order_do_not_matter(x, scale):
    """Catches one-sided p, and ties that depend on rounding or on order."""
    x = np.array(x, float)
    p = sign_flip(x, np.arange(len(x)))
    assert smallest_p(len(x)) <= p <= 1
    assert sign_flip(scale * x[::-1], np.arange(len(x))) == p


def test_null_is_uniform_when_prompts_of_a_cluster_move_together():
    """Catches p too small: prompts as units (half of them below 0.05), ties left out. The bound
    is Kolmogorov's 0.1 % point, plus the step 2^-11 of an exact p on 12 clusters."""
    rng = np.random.default_rng(6)
    cluster = np.repeat(np.arange(12), 4)
    values = rng.normal(size=(2000, 12))[:, cluster] + 0.2 * rng.normal(size=(2000, 48))
    p = sign_flip(values, cluster)
    assert stats.kstest(p, "uniform").statistic < 1.95 / np.sqrt(2000) + 2.0**-11
    prompts = sign_flip(values[:300], np.arange(48))
    assert np.mean(prompts <= 0.05) > 0.2  # the simulation can tell


def test_enough_clusters_for_single_heads():
    """Catches the rule off by one; the two cases are the project's own."""
    assert enough_for(270, 14) and not enough_for(270, 13)
    assert enough_for(1920, 17) and not enough_for(1920, 16)
    assert smallest_p(0) == smallest_p(1) == 1
