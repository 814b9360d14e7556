"""Gathers prompts into clusters, the unit that is resampled, flipped and split.

Ten phrasings of one fact are not independent. Counted as ten observations they would make every
interval about √10 times too short, so everything here works with one total per cluster.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mechforget.errors import MeasureError
from mechforget.shapes import Array, ArrayLike, Bool, Float, Int, Num, Shaped


class ClusterSums(NamedTuple):
    """Totals per cluster. The estimate is `total.sum(-1) / weight.sum(-1)`."""

    total: Float[Array, "*place cluster"]  # the sum of the values
    weight: Float[Array, "*place cluster"]  # the number of prompts, or the sum of `over`
    present: Bool[Array, "*place cluster"]  # has at least one prompt with a value


def cluster_sums(
    values: Num[ArrayLike, "..."], cluster: Shaped[ArrayLike, "..."], over: ArrayLike | None = None
) -> ClusterSums:
    """Sums of values [..., prompt] over each cluster [prompt], in the order of the sorted ids.

    over: the denominator of a ratio of means, broadcastable to values. A prompt that is NaN in one
    of them is left out of both.
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

    def total(x: Num[Array, "*place prompt"]) -> Num[Array, "*place cluster"]:
        return np.add.reduceat(x[..., order], starts, axis=-1)

    return ClusterSums(
        total(np.where(used, values, 0.0)),
        total(np.where(used, weight, 0.0)),
        total(used.astype(np.int64)) > 0,
    )


def divide(top: Num[Array, "*place"], bottom: Num[Array, "*place"]) -> Float[Array, "*place"]:
    """top / bottom, NaN where bottom is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom != 0)


def mean(values: Num[ArrayLike, "..."], axis: int | tuple[int, ...] = -1) -> Float[Array, "..."]:
    """Mean over the prompts that have a value; NaN if none has, for which numpy's nanmean warns."""
    values = np.asarray(values, np.float64)
    return divide(np.nansum(values, axis=axis), np.sum(~np.isnan(values), axis=axis))


def n_clusters(
    values: Num[ArrayLike, "*place prompt"], cluster: Shaped[ArrayLike, " prompt"]
) -> Int[Array, "*place"]:
    """n: the number of clusters that have a value."""
    return cluster_sums(values, cluster).present.sum(-1)


def same_clusters(
    present: Bool[Array, "row cluster"],
) -> Iterator[tuple[Int[Array, " some_rows"], Int[Array, " some_clusters"]]]:
    """Pairs of (rows, clusters), such that these rows have values in exactly these clusters.

    Rows of one pair can share a matrix of resamples. Usually there is only one pair.
    """
    patterns, which = np.unique(present, axis=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        yield np.flatnonzero(which.reshape(-1) == i), np.flatnonzero(pattern)
