"""Jackknife intervals, from the estimates without one cluster at a time.

They are for estimators that leave out the pairs of an observation with itself. A bootstrap draws
some clusters twice, and the pair of two copies is not left out: unbiased CKA of unrelated rows
would become 0.9.
"""

import numpy as np

from mechforget.shapes import ArrayLike, Num
from mechforget.statistics.bootstrap import FEWEST, ROUNDING, Interval


def jackknife(
    estimate: Num[ArrayLike, "*place"],
    *without: Num[ArrayLike, "*place _"],
    level: float = 0.95,
) -> Interval:
    """estimate ± t · se, se² = Σ over samples of (n - 1)/n Σ_c (θ_(c) - mean θ_(c))².

    Args: without: for each independent sample of clusters θ_(c), the estimate without cluster c,
        clusters on the last axis.
    Returns: of each place; t has the smallest sample's n - 1 degrees of freedom. [x, x] where
        no cluster matters; NaN if a sample has fewer than 8 clusters, or if a θ_(c) is NaN.
    Source: Tukey 1958; Efron & Stein 1981, doi:10.1214/aos/1176345462: it tends to be too wide.
        Blind to skew, and not valid for statistics that aren't smooth (medians, ranks).

    >>> found = jackknife(4.5, (45 - np.arange(10.0)) / 9)  # of a mean: the t interval
    >>> np.round([found.low, found.high], 3)
    array([2.334, 6.666])
    """
    from scipy.special import stdtrit

    estimate = np.asarray(estimate, np.float64)
    variance = np.zeros(estimate.shape)
    sizes = []
    for each in (np.asarray(w, np.float64) for w in without):
        n = each.shape[-1]
        sizes.append(n)
        apart = each - each.mean(-1, keepdims=True) if n else each
        apart[abs(apart) <= ROUNDING * abs(estimate)[..., None]] = 0
        variance = variance + (n - 1) / max(n, 1) * (apart**2).sum(-1)
    n = min(sizes)
    half = stdtrit(n - 1, (1 + level) / 2) * np.sqrt(variance) if n >= FEWEST else np.nan
    return Interval(estimate, estimate - half, estimate + half)
