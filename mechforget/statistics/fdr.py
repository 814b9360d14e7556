"""Benjamini-Hochberg: of the heads called significant at q <= 0.05, about 1 in 20 is noise."""

import math

import numpy as np

from mechforget.shapes import Array, ArrayLike, Float, Num


def q_values(p: Num[ArrayLike, "*place"], axes: tuple[int, ...]) -> Float[Array, "*place"]:
    """q, corrected jointly over `axes` (a family), separately over the others.

    NaN means not tested: it stays NaN and does not count. With `axes=()` each is a family of its
    own, and q = p.
    Raises: ValueError: p outside [0, 1].
    Source: Benjamini & Hochberg 1995, through scipy.stats.false_discovery_control. Holds under
    independence and positive dependence, which heads read on the same prompts mostly show.

    >>> q_values([0.01, 0.04, 0.03, float("nan")], axes=(0,))
    array([0.03, 0.04, 0.04,  nan])
    """
    from scipy.stats import false_discovery_control  # 1 s to import

    p = np.asarray(p, np.float64)
    last = tuple(range(-len(axes), 0))
    moved = np.moveaxis(p, axes, last)
    families = moved.reshape(-1, math.prod(p.shape[a] for a in axes)) if p.size else moved
    q = np.full(families.shape, np.nan)
    for family, out in zip(families, q, strict=True):
        tested = ~np.isnan(family)
        if tested.any():
            out[tested] = false_discovery_control(family[tested])
    return np.moveaxis(q.reshape(moved.shape), last, axes)
