"""Unbiased linear CKA: are the same prompts close to each other in two sets of activations?

HSIC is a mean over two, three and four different observations. Here these come from different
clusters, because two phrasings of one fact are close to each other in any set of activations.
"""

from typing import NamedTuple

import numpy as np

from mechforget.errors import MeasureError
from mechforget.shapes import Array, ArrayLike, Float, Num, Shaped
from mechforget.statistics.bootstrap import ROUNDING, Interval
from mechforget.statistics.jackknife import jackknife

FEWEST_ROWS = 4  # clusters: HSIC takes four different ones


def unbiased_cka(
    x: Num[ArrayLike, "row d"],
    y: Num[ArrayLike, "row e"],
    cluster: Shaped[ArrayLike, " row"],
    *,
    level: float = 0.95,
) -> Interval:
    """HSIC(x, y) / √(HSIC(x, x) HSIC(y, y)), each unbiased; a jackknife interval over clusters.

    HSIC = E k₁₂l₁₂ + E k₁₂ E l₃₄ - 2 E k₁₂l₁₃ over rows of different clusters, k and l the rows'
    inner products. Every cluster counts once: its rows are averaged.
    Args: x, y: their rows are of the same prompts. cluster: an id for each row.
    Returns: with one row per cluster it is in [-1, 1]: 1 if x and y are the same up to rotation and
        scale, about 0 if they are unrelated, even with fewer rows than dimensions. NaN if all rows
        of x or of y are equal, or with fewer than 4 clusters; no interval with fewer than 8. The
        interval is clipped to [-1, 1].
    Raises: MeasureError: the numbers of rows differ, or a value is NaN or infinite.
    Source: Kornblith et al. 2019, 1905.00414; the U-statistic: Song et al. 2012 (JMLR 13), which it
        is with a row per cluster. Blind to rotations, and to small directions beside large ones.

    >>> x = np.random.default_rng(0).normal(size=(32, 512))
    >>> float(unbiased_cka(x, 2 * x[:, ::-1], range(32)).estimate.round(12))
    1.0
    """
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    _, index = np.unique(np.asarray(cluster), return_inverse=True)
    if not len(x) == len(y) == len(index):
        raise MeasureError(
            f"{len(x)} and {len(y)} rows of {len(index)} cluster ids: want the same rows in both"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise MeasureError("activations hold inf or NaN: use float32 or bfloat16")
    x, y = centred(x), centred(y)
    n = int(index.max()) + 1
    if n < FEWEST_ROWS:
        return Interval(*np.full(3, np.nan))
    member = np.equal.outer(index, np.arange(n)) / np.bincount(index)
    a, b = _grams(x, member), _grams(y, member)
    xy, xx, yy = (_hsic(*pair, member) for pair in ((a, b), (a, a), (b, b)))
    with np.errstate(invalid="ignore", divide="ignore"):  # equal rows: 0 / 0; noise: √ of negative
        cka = xy / np.sqrt(xx * yy)
    cka[(xx <= 0) | (yy <= 0)] = np.nan
    found = jackknife(cka[0], cka[1:], level=level)
    return Interval(found.estimate, *(np.clip(end, -1, 1) for end in found[1:]))


def centred(x: Float[Array, "row d"]) -> Float[Array, "row d"]:
    """Rows minus their mean; what is only a rounding error becomes exactly 0."""
    apart = x - x.mean(0)
    return np.where(abs(apart) <= ROUNDING * abs(x).max(0), 0.0, apart)


class _Grams(NamedTuple):
    gram: Float[Array, "row row"]
    to: Float[Array, "row cluster"]  # mean over that cluster's rows, 0 for the row's own
    block: Float[Array, "cluster cluster"]  # mean over the rows of both, 0 on the diagonal


def _grams(x: Float[Array, "row d"], member: Float[Array, "row cluster"]) -> _Grams:
    gram = x @ x.T
    to = np.where(member > 0, 0.0, gram @ member)
    return _Grams(gram, to, member.T @ to)


def _hsic(a: _Grams, b: _Grams, member: Float[Array, "row cluster"]) -> Float[Array, " 1+cluster"]:
    """HSIC of all clusters, and without each one. A sum over different clusters is the
    sum over all minus the terms in which two are the same, so no cluster needs its own pass."""
    n = member.shape[1]
    share = member.sum(1)

    pairs = member.T @ (a.gram * b.gram) @ member
    np.fill_diagonal(pairs, 0)
    two = np.append(pairs.sum(), pairs.sum() - 2 * pairs.sum(0))

    ra, rb, both = a.to.sum(1), b.to.sum(1), a.to * b.to
    mine = share * (ra * rb - both.sum(1))
    lost = (member > 0).T @ mine + share @ (ra[:, None] * b.to + rb[:, None] * a.to - 2 * both)
    three = np.append(mine.sum(), mine.sum() - lost)

    sa, sb, meet = a.block.sum(0), b.block.sum(0), a.block * b.block
    shared = np.append(sa @ sb, sa @ sb - sa * sb - b.block @ sa - a.block @ sb + meet.sum(0))
    total = [np.append(s.sum(), s.sum() - 2 * s) for s in (sa, sb)]
    same = np.append(meet.sum(), meet.sum() - 2 * meet.sum(0))
    four = total[0] * total[1] - 4 * shared + 2 * same

    m = np.append(float(n), np.full(n, n - 1.0))
    with np.errstate(invalid="ignore", divide="ignore"):  # of four clusters, without one: NaN
        return (two - (2 * three - four / (m - 3)) / (m - 2)) / (m * (m - 1))
