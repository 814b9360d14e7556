"""Splits by cluster, cross-fitting without the winner's curse, random sets."""

import numpy as np
import pytest
from scipy import stats

from mechforget.errors import MeasureError
from mechforget.statistics import crossfit, random_sets, rank, split_half

NAN = float("nan")


@pytest.mark.parametrize("n", [2, 7, 10])
def test_halves_keep_clusters_whole(n):
    """Catches a split of prompts, which would let a cluster judge the head that it chose."""
    cluster = np.arange(3 * n) % n
    a, b = split_half(cluster, seed=1)
    assert (a ^ b).all()
    assert not set(cluster[a]) & set(cluster[b])
    assert (len(set(cluster[a])), len(set(cluster[b]))) == ((n + 1) // 2, n // 2)


def test_halves_follow_the_seed():
    """Catches a split by order (subjects often come sorted) and one that does not repeat."""
    cluster = np.arange(20)
    splits = [tuple(split_half(cluster, seed)[0]) for seed in (0, 0, 1, 2)]
    assert splits[0] == splits[1]
    assert len(set(splits)) == 3
    often = np.mean([split_half(cluster, seed)[0] for seed in range(400)], axis=0)
    assert (abs(often - 0.5) < 4 * 0.5 / np.sqrt(400)).all()


def test_one_cluster_cannot_be_split():
    """Catches an empty half."""
    with pytest.raises(MeasureError, match="1 distinct prompts cannot be split in two"):
        split_half([3, 3, 3])


def test_rank():
    """Catches ascending order, |effect|, prompts outside the mask, NaN heads first."""
    effect = [[1.0, 1, 99], [NAN, NAN, 99], [-5.0, -5, 99], [3.0, NAN, 0]]
    assert rank(effect, np.array([True, True, False])).tolist() == [3, 0, 2, 1]


def test_crossfit_reads_each_half_with_the_others_choice():
    """Catches a head read on the prompts that chose it: here each half has its own favourite."""
    cluster = np.arange(10)
    a, b = split_half(cluster, seed=3)
    effect = np.zeros((3, 10))
    effect[0, a], effect[0, b] = 5, -1  # best on a
    effect[1, a], effect[1, b] = -2, 5  # best on b
    values, heads = crossfit(effect, cluster, seed=3)
    assert heads == (1, 0)
    np.testing.assert_array_equal(values, np.where(a, -2, -1))


def test_crossfit_has_no_winners_curse():
    """Catches selection and scoring on the same prompts: the best of 50 noise heads looks good.
    The cross-fitted mean of 300 studies is 0 within 4 standard errors."""
    rng = np.random.default_rng(0)
    studies = rng.normal(size=(300, 50, 16))
    fitted = np.array([crossfit(x, np.arange(16))[0].mean() for x in studies])
    assert abs(fitted.mean()) < 4 * fitted.std() / np.sqrt(300)
    assert studies.mean(-1).max(-1).mean() > 0.4  # what it protects from


def test_crossfit_keeps_a_real_head():
    """Catches a correction that hides what is there."""
    effect = 0.1 * np.random.default_rng(1).normal(size=(20, 12))
    effect[7] += 2
    values, heads = crossfit(effect, np.arange(12))
    assert heads == (7, 7)
    np.testing.assert_array_equal(values, effect[7])


def test_random_sets_match_layer_by_layer():
    """Catches heads drawn from anywhere, twice, or from the chosen set."""
    chosen = [(4, 1), (0, 2), (4, 3), (2, 0)]
    sets, seeds = random_sets([layer for layer, _ in chosen], 6, seed=1, exclude=chosen)
    assert sets.shape == (20, 4, 2) and seeds.shape == (20,)
    for one in sets.tolist():
        assert [layer for layer, _ in one] == [0, 2, 4, 4]
        assert len({*map(tuple, one)}) == 4
        assert not {*map(tuple, one)} & set(chosen)
        assert all(0 <= head < 6 for _, head in one)


def test_random_sets_are_uniform():
    """Catches a head that is never or too often drawn; chi-square at its 0.1 % point."""
    sets, _ = random_sets([0, 0], 5, n_draws=2000)
    counts = np.bincount(sets[..., 1].ravel(), minlength=5)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_random_sets_can_be_drawn_again_from_their_seeds():
    """Catches seeds that are not those used, and draws that repeat."""
    sets, seeds = random_sets([1, 3, 3], 8, n_draws=5, seed=2)
    assert len(set(seeds.tolist())) == 5
    np.testing.assert_array_equal(sets, random_sets([3, 1, 3], 8, n_draws=5, seed=2)[0])
    assert (sets != random_sets([1, 3, 3], 8, n_draws=5, seed=3)[0]).any()
    for one, seed in zip(sets, seeds, strict=True):
        rng = np.random.default_rng(seed)
        heads = [*np.sort(rng.choice(8, 1, False)), *np.sort(rng.choice(8, 2, False))]
        np.testing.assert_array_equal(one, [[1, heads[0]], [3, heads[1]], [3, heads[2]]])


def test_random_sets_refuse_what_a_layer_does_not_have():
    """Catches a set that is silently smaller than the chosen one."""
    with pytest.raises(MeasureError, match="3 random heads wanted in layer 5, 2 left of 4"):
        random_sets([5, 5, 5], 4, exclude=[(5, 0), (5, 1)])
