"""Rank correlation of two lists whose entries belong to groups."""

import numpy as np

from mechforget.shapes import Array, ArrayLike, Float, Num, Shaped

DRAWS = 500


def rank_correlation(
    a: Num[ArrayLike, " entry"],
    b: Num[ArrayLike, " entry"],
    group: Shaped[ArrayLike, " entry"],
    *,
    seed: int = 0,
) -> tuple[float, float, float, int]:
    """Spearman's rho over the entries that are finite in both lists, its 95 % percentile interval
    from resampling whole groups, and the number of entries.

    NaN if fewer than 3 entries are left or one list is constant; no interval below 3 groups.
    """
    a, b, group = (np.asarray(x) for x in (a, b, group))
    both = np.isfinite(a) & np.isfinite(b)
    a, b, group = a[both], b[both], group[both]
    if len(a) < 3:
        return np.nan, np.nan, np.nan, len(a)
    value = float(_rho(a, b, np.ones((1, len(a))))[0])
    names, index = np.unique(group, return_inverse=True)
    if np.isnan(value) or len(names) < 3:
        return value, np.nan, np.nan, len(a)
    even = np.full(len(names), 1 / len(names))
    times = np.random.default_rng(seed).multinomial(len(names), even, DRAWS)
    low, high = np.nanquantile(_rho(a, b, times[:, index]), [0.025, 0.975])
    return value, float(low), float(high), len(a)


def _rho(
    a: Num[Array, " entry"], b: Num[Array, " entry"], times: Num[Array, "draw entry"]
) -> Float[Array, " draw"]:
    """Rho of each draw, which takes each entry so many times; NaN where one list is constant."""
    n = times.sum(1, keepdims=True)
    x, y = (ranks - (times * ranks).sum(1, keepdims=True) / n
            for ranks in (_ranks(one, times) for one in (a, b)))  # fmt: skip
    spread = (times * x**2).sum(1) * (times * y**2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, (times * x * y).sum(1) / np.sqrt(spread), np.nan)


def _ranks(x: Num[Array, " entry"], times: Num[Array, "draw entry"]) -> Float[Array, "draw entry"]:
    """The rank of each entry among all that a draw takes; ties share the middle of theirs."""
    _, inverse = np.unique(x, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.flatnonzero(np.diff(inverse[order], prepend=-1))
    equal = np.add.reduceat(times[:, order], starts, axis=1)
    return (equal.cumsum(1) - (equal - 1) / 2)[:, inverse]
