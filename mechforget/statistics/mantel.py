"""Does one relation between tasks go with another? Correlation over pairs, with tasks as the unit.

Ten tasks make ninety pairs, but not ninety observations: pairs that share a task move together. So
whole tasks are permuted and resampled.
"""

from math import factorial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechforget.errors import MeasureError

FEWEST_TASKS = 6  # below, few permutations and fewer resamples say anything
EXACT = 8  # tasks up to which all permutations are made: 40,320
PERMUTATIONS, RESAMPLES = 9_999, 2_000


class Correlation(NamedTuple):
    estimate: float
    low: float
    high: float
    p: float  # two-sided, Mantel


def mantel(
    x: ArrayLike, y: ArrayLike, *, ranks: bool = False, seed: int = 0, level: float = 0.95
) -> Correlation:
    """Pearson's (ranks: Spearman's) r of x and y over ordered pairs of different tasks.

    Args: x, y: [task, task], need not be symmetric; the diagonals aren't read. x is complete, y is
        NaN where a pair wasn't measured.
    Returns: r, its percentile interval over tasks resampled with replacement (a task doesn't pair
        with its own copies), and the share of permutations of x's tasks with |r| at least as
        large; exact up to 8 tasks, else (1 + hits) / (1 + 9999). All NaN below 6 tasks or where
        either doesn't vary: it cannot be told.
    Raises: MeasureError: shapes that don't fit, or an x that isn't complete.
    Source: Mantel 1967 (Cancer Research 27); resampling nodes: Snijders & Borgatti 1999. Blind to
        curves that Pearson doesn't fit; few tasks have few ways to be resampled, so intervals run
        short.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n = len(x)
    if x.shape != y.shape or x.shape != (n, n):
        raise MeasureError(f"matrices of shapes {x.shape} and {y.shape}: want [task, task] twice")
    apart = ~np.eye(n, dtype=bool)
    if not np.isfinite(x[apart]).all():
        raise MeasureError("the first matrix has pairs without a value: want it complete")
    used = apart & np.isfinite(y)
    r = _correlation(x[used], y[used], ranks)
    if n < FEWEST_TASKS or np.isnan(r):
        return Correlation(*np.full(4, np.nan))
    rng = np.random.default_rng(seed)
    a, b = np.nonzero(used)
    drawn = [_redrawn(x, y, used, rng.integers(0, n, n), ranks) for _ in range(RESAMPLES)]
    drawn = np.array(drawn)[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    exact = n <= EXACT
    orders = (
        _all_orders(n) if exact else np.array([rng.permutation(n) for _ in range(PERMUTATIONS)])
    )
    found = _rows_correlation(x[orders[:, a], orders[:, b]], y[used], ranks)
    hits = int((abs(found) >= abs(r) - 1e-12).sum())
    p = hits / factorial(n) if exact else (1 + hits) / (1 + PERMUTATIONS)
    return Correlation(r, float(low), float(high), p)


def _redrawn(x: NDArray, y: NDArray, used: NDArray, order: NDArray, ranks: bool) -> float:
    at = np.ix_(order, order)
    keep = used[at]  # a task and its copy are no pair: they lie on the diagonal of x
    return _correlation(x[at][keep], y[at][keep], ranks)


def _correlation(x: NDArray, y: NDArray, ranks: bool) -> float:
    return float(_rows_correlation(x[None], y, ranks)[0]) if len(x) > 2 else np.nan


def _rows_correlation(x: NDArray, y: NDArray, ranks: bool) -> NDArray[np.float64]:
    """r of each row of x [row, pair] with y [pair]; NaN where one doesn't vary."""
    from scipy.stats import rankdata

    if ranks:
        x, y = rankdata(x, axis=-1), rankdata(y)
    x, y = x - x.mean(-1, keepdims=True), y - y.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        return x @ y / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y))


def _all_orders(n: int) -> NDArray[np.int64]:
    from itertools import permutations

    return np.array(list(permutations(range(n))))
