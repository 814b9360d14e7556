"""Rank correlation of two lists whose entries come in groups."""

import numpy as np
from numpy.typing import ArrayLike

DRAWS = 500


def rank_correlation(
    a: ArrayLike, b: ArrayLike, group: ArrayLike, *, seed: int = 0
) -> tuple[float, float, float, int]:
    """Spearman's rho of the entries that both have, its 95 % percentile interval with whole groups
    resampled, and how many entries.

    NaN where fewer than 3 entries are left or one list is constant; no interval below 3 groups.
    """
    from scipy.stats import rankdata

    a, b, group = (np.asarray(x) for x in (a, b, group))
    both = np.isfinite(a) & np.isfinite(b)
    a, b, group = a[both], b[both], group[both]

    def rho(x: np.ndarray, y: np.ndarray) -> float:
        if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return np.nan
        return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])

    value, names = rho(a, b), np.unique(group)
    if np.isnan(value) or len(names) < 3:
        return value, np.nan, np.nan, len(a)
    members = [np.flatnonzero(group == name) for name in names]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        index = np.concatenate([members[i] for i in rng.choice(len(names), len(names))])
        drawn.append(rho(a[index], b[index]))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return value, float(low), float(high), len(a)
