"""Correlation of two quantities over pairs of tasks, with the task as the unit (Mantel test).

Ten tasks make ninety pairs but not ninety observations, since pairs that share a task are not
independent. So whole tasks are permuted and resampled.
"""

from math import factorial
from typing import NamedTuple

import numpy as np

from mechforget.errors import MeasureError
from mechforget.shapes import Array, ArrayLike, Bool, Float, Int, Num

FEWEST_TASKS = 6  # with fewer there are too few permutations and resamples
EXACT = 8  # up to so many tasks all permutations are made: 40,320
PERMUTATIONS, RESAMPLES = 9_999, 2_000


class Correlation(NamedTuple):
    estimate: float
    low: float
    high: float
    p: float  # two-sided, Mantel


def mantel(
    x: Num[ArrayLike, "task task"],
    y: Num[ArrayLike, "task task"],
    *,
    ranks: bool = False,
    seed: int = 0,
    level: float = 0.95,
) -> Correlation:
    """Pearson's (ranks: Spearman's) r of x and y over ordered pairs of different tasks.

    Args: x, y: need not be symmetric; their diagonals aren't read. x is complete, y is NaN where a
        pair wasn't measured.
    Returns: r; its percentile interval over tasks resampled with replacement (a task doesn't pair
        with its own copies); and p, the share of permutations of x's tasks with |r| at least as
        large, exact up to 8 tasks, else (1 + hits) / (1 + 9999). All are NaN below 6 tasks or if
        x or y doesn't vary.
    Raises: MeasureError: the shapes don't fit, or x isn't complete.
    Source: Mantel 1967 (Cancer Research 27); resampling nodes: Snijders & Borgatti 1999. Blind to
        relations that aren't linear (with ranks: monotonic). With few tasks intervals are short.
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


def _redrawn(
    x: Float[Array, "task task"],
    y: Float[Array, "task task"],
    used: Bool[Array, "task task"],
    order: Int[Array, " task"],
    ranks: bool,
) -> float:
    at = np.ix_(order, order)
    keep = used[at]  # leaves out a task and its copy, which are on the diagonal
    return _correlation(x[at][keep], y[at][keep], ranks)


def _correlation(x: Float[Array, " pair"], y: Float[Array, " pair"], ranks: bool) -> float:
    return float(_rows_correlation(x[None], y, ranks)[0]) if len(x) > 2 else np.nan


def _rows_correlation(
    x: Float[Array, "row pair"], y: Float[Array, " pair"], ranks: bool
) -> Float[Array, " row"]:
    """r of each row of x with y; NaN where one of the two doesn't vary."""
    from scipy.stats import rankdata

    if ranks:
        x, y = rankdata(x, axis=-1), rankdata(y)
    x, y = x - x.mean(-1, keepdims=True), y - y.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        return x @ y / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y))


def _all_orders(n: int) -> Int[Array, "order {n}"]:
    from itertools import permutations

    return np.array(list(permutations(range(n))))
