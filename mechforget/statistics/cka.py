"""Unbiased linear CKA: are the same prompts near each other in two sets of activations?

HSIC is a mean over two, three and four different observations. Here they are of different
clusters: two phrasings of one fact are near each other in both sets, whatever these are.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechforget.errors import MeasureError
from mechforget.statistics.bootstrap import ROUNDING, Interval
from mechforget.statistics.jackknife import jackknife

FEWEST_ROWS = 4  # clusters: HSIC takes four different ones


def unbiased_cka(
    x: ArrayLike, y: ArrayLike, cluster: ArrayLike, *, level: float = 0.95
) -> Interval:
    """HSIC(x, y) / √(HSIC(x, x) HSIC(y, y)), each unbiased; a jackknife interval over clusters.

    HSIC = E k₁₂l₁₂ + E k₁₂ E l₃₄ - 2 E k₁₂l₁₃ over rows of different clusters, k and l the rows'
    inner products. Every cluster counts as one, and its rows are averaged over.
    Args: x: [row, d], y: [row, e], rows aligned. cluster: ids [row].
    Returns: in [-1, 1] with a row per cluster: 1 the same up to rotation and scale, about 0
        unrelated, also where rows are fewer than dimensions. NaN where all rows of x or y are
        equal, or of fewer than 4 clusters; no interval below 8. Ends are cut at -1 and 1.
    Raises: MeasureError: rows that aren't aligned, or values that are no numbers.
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


def centred(x: NDArray) -> NDArray[np.float64]:
    """Rows minus their mean; exactly 0 where only rounding is left."""
    apart = x - x.mean(0)
    return np.where(abs(apart) <= ROUNDING * abs(x).max(0), 0.0, apart)


class _Grams(NamedTuple):
    gram: NDArray  # [row, row]
    to: NDArray  # [row, cluster]: mean over that cluster's rows, 0 for the row's own
    block: NDArray  # [cluster, cluster]: mean over both's rows, 0 on the diagonal


def _grams(x: NDArray, member: NDArray) -> _Grams:
    gram = x @ x.T
    to = np.where(member > 0, 0.0, gram @ member)
    return _Grams(gram, to, member.T @ to)


def _hsic(a: _Grams, b: _Grams, member: NDArray) -> NDArray[np.float64]:
    """[1 + cluster]: HSIC of all clusters, and without each. Every sum over different clusters is
    one over all minus those that meet, so no cluster needs a pass of its own."""
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
