"""Jackknife intervals: what the estimate becomes without one cluster at a time.

For estimators that leave out the pairs of an observation with itself. A bootstrap draws clusters
twice, such a pair of copies is no longer left out, and unbiased CKA of unrelated rows becomes 0.9.
"""

import numpy as np
from numpy.typing import ArrayLike

from mechforget.statistics.bootstrap import FEWEST, ROUNDING, Interval


def jackknife(estimate: ArrayLike, *without: ArrayLike, level: float = 0.95) -> Interval:
    """estimate ± t · se, se² = Σ over samples of (n - 1)/n Σ_c (θ_(c) - mean θ_(c))².

    Args: estimate: [...]. without: of each independent sample of clusters, θ_(c) [..., cluster],
        the estimate without cluster c.
    Returns: Interval of [...]; t has the smallest sample's n - 1 degrees of freedom. [x, x] where
        no cluster matters; NaN below 8 clusters in a sample, or where a θ_(c) is NaN.
    Source: Tukey 1958; Efron & Stein 1981, doi:10.1214/aos/1176345462: it errs on the wide side.
        Blind to skew, and for statistics that aren't smooth (medians, ranks) it isn't valid.

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
