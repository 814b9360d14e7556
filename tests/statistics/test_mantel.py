"""Mantel's test against scipy and brute force over all permutations of tasks."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from mechforget.errors import MeasureError
from mechforget.statistics import mantel

R = {False: stats.pearsonr, True: stats.spearmanr}


def matrices(n, seed, strength=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n)).round(1)  # ties
    return x + x.T, strength * x + rng.normal(size=(n, n))


@pytest.mark.parametrize("ranks", [False, True])
@pytest.mark.parametrize("lower", [False, True])
def test_equals_scipy_and_all_permutations(ranks, lower):
    """Catches the diagonal read, rows permuted without columns, pairs as the unit, one side, ties
    in ranks, pairs that weren't measured."""
    x, y = matrices(6, 1)
    if lower:
        y[np.triu_indices(6)] = np.nan
    used = ~np.eye(6, dtype=bool) & np.isfinite(y)
    found = mantel(x, y, ranks=ranks)
    want = R[ranks](x[used], y[used]).statistic
    assert found.estimate == pytest.approx(want, abs=1e-12)
    each = [abs(R[ranks](x[np.ix_(o, o)][used], y[used]).statistic) for o in permutations(range(6))]
    assert found.p == pytest.approx(np.mean(np.array(each) >= abs(want) - 1e-9))
    assert found.low < found.estimate < found.high


def test_many_tasks_are_permuted_at_random():
    """Catches p = 0, and a p that isn't uniform where there is nothing."""
    x, y = matrices(12, 2, strength=3.0)
    assert mantel(x, y).p == 1 / 10_000
    p = [mantel(*matrices(7, seed, 0.0)).p for seed in range(20)]
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_a_task_that_pairs_badly_with_all_widens_the_interval():
    """Catches pairs resampled instead of tasks: effects of single tasks make pairs move together."""
    rng = np.random.default_rng(3)
    node = rng.normal(size=10)
    x, y = node[:, None] + node, node[:, None] + node + 0.1 * rng.normal(size=(10, 10))
    x, y = x + 2 * rng.normal(size=(10, 1)), y + 2 * rng.normal(size=(10, 1))
    used = ~np.eye(10, dtype=bool)
    found = mantel(x, y)
    naive = stats.pearsonr(x[used], y[used]).confidence_interval()
    assert found.high - found.low > 1.5 * (naive.high - naive.low)


@pytest.mark.usefixtures("unchecked_shapes")
def test_too_few_and_refused():
    """Catches a correlation of 5 tasks, and one that isn't defined."""
    assert np.isnan(mantel(*matrices(5, 4))).all()
    x, _ = matrices(7, 5)
    assert np.isnan(mantel(x, np.ones((7, 7)))).all()
    with pytest.raises(MeasureError, match=r"\(7, 7\) and \(6, 6\): want \[task, task\] twice"):
        mantel(x, x[:6, :6])
    x[0, 1] = np.nan
    with pytest.raises(MeasureError, match="want it complete"):
        mantel(x, x)
