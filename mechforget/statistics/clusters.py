"""Prompts gathered into clusters: the unit that is resampled, flipped and split.

Ten phrasings of one fact move together; counted as ten observations they would shrink every
interval by about √10. So everything here works on one total per cluster.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechforget.errors import MeasureError


class ClusterSums(NamedTuple):
    """Totals per cluster; the estimate is `total.sum(-1) / weight.sum(-1)`."""

    total: NDArray[np.float64]  # [..., cluster], the sum of the values
    weight: NDArray[np.float64]  # [..., cluster], number of prompts, or the sum of `over`
    present: NDArray[np.bool_]  # [..., cluster], has at least one prompt with a value


def cluster_sums(
    values: ArrayLike, cluster: ArrayLike, over: ArrayLike | None = None
) -> ClusterSums:
    """Sums per cluster of values [..., prompt], clusters in the order of their sorted ids.

    over: the denominator of a ratio of means, broadcastable to values. A prompt that is NaN in
    either is left out of both.
    Raises: MeasureError: an infinite value, no prompts, or not one cluster id per prompt.
    """
    values, cluster = np.asarray(values, np.float64), np.asarray(cluster)
    if cluster.ndim != 1 or values.ndim == 0 or values.shape[-1] != len(cluster):
        raise MeasureError(
            f"cluster ids of shape {cluster.shape} for values of shape {values.shape}: "
            "give one id per prompt, prompts on the last axis"
        )
    weight = np.ones(()) if over is None else np.asarray(over, np.float64)
    if not len(cluster):
        raise MeasureError("no prompts, so no mean: give at least one, or keep more of the task")
    values, weight = np.broadcast_arrays(values, weight)
    if np.isinf(values).any() or np.isinf(weight).any():
        raise MeasureError("infinite values have no mean: give NaN where a prompt has no value")
    used = ~(np.isnan(values) | np.isnan(weight))
    _, index = np.unique(cluster, return_inverse=True)
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))

    def total(x: NDArray) -> NDArray:
        return np.add.reduceat(x[..., order], starts, axis=-1)

    return ClusterSums(
        total(np.where(used, values, 0.0)),
        total(np.where(used, weight, 0.0)),
        total(used.astype(np.int64)) > 0,
    )


def divide(top: NDArray, bottom: NDArray) -> NDArray[np.float64]:
    """top / bottom, NaN where bottom is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom != 0)


def mean(values: ArrayLike, axis: int | tuple[int, ...] = -1) -> NDArray[np.float64]:
    """Mean over prompts that have a value; NaN where none has (numpy's nanmean warns there)."""
    values = np.asarray(values, np.float64)
    return divide(np.nansum(values, axis=axis), np.sum(~np.isnan(values), axis=axis))


def n_clusters(values: ArrayLike, cluster: ArrayLike) -> NDArray[np.int64]:
    """n: the number of clusters with a value, [...]."""
    return cluster_sums(values, cluster).present.sum(-1)


def same_clusters(present: NDArray[np.bool_]) -> Iterator[tuple[NDArray, NDArray]]:
    """(rows, clusters) such that these rows [row, cluster] have values in just these clusters.

    Rows that agree can share one matrix of resamples; mostly all do.
    """
    patterns, which = np.unique(present, axis=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        yield np.flatnonzero(which.reshape(-1) == i), np.flatnonzero(pattern)
