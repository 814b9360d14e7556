"""How few heads are enough: cumulative top-k sets against random sets, cross-fitted."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from mechforget.errors import MeasureError
from mechforget.measures.explained import described
from mechforget.measures.inputs import Inputs, measure, metric_coords
from mechforget.measures.patching import effects
from mechforget.statistics import random_sets, rank, split_half
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.donor import Donor
from mechforget.sweeps.metric import Metric
from mechforget.sweeps.plan import heads

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.sweeps.metric import Function

SIZES = (1, 2, 4, 8, 16)
DRAWS = 20


@measure
def top_sets(
    inputs: Inputs,
    *,
    effect: "xr.DataArray",
    site: str = "head_out",
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    metric: "Function | None" = None,
) -> "xr.Dataset":
    """Effect of restoring the k strongest heads together, and of k random heads of the same layers.

    Heads are ranked by their mean single effect on one half of the clusters and restored on the
    other half, both ways round, so that no prompt judges a set that it chose.
    Args: effect: (layer, head, prompt), e.g. patching's for log_prob and restore; no set is larger
        than the heads that have one. metric: one of your own besides the built-in ones, see
        `sweeps.metric.Metric.of`; to rank by it, give its effect.
    Returns: `top` (metric, k, prompt), `random` (metric, k, draw, prompt): m(post with the set
        <- pre) - m(post), nats; `chosen` (half, k, rank, place): layer and head, -1 beyond k, half
        0's set being judged on half 0; `judged_in` (prompt): its half; `seeds` (half, k, draw).
    Raises: MeasureError: fewer than two clusters.
    Examples:
        >>> import xarray as xr
        >>> effect = xr.DataArray(np.zeros((3, 4, 14)), dims=("layer", "head", "prompt"))
        >>> effect[1, 2] = 1  # L1H2 is the strongest on every prompt
        >>> top_sets(planted, effect=effect, sizes=(1,)).chosen.values[:, 0, 0].tolist()
        [[1, 2], [1, 2]]
    """
    import xarray as xr

    spec, own = inputs.post.spec, Metric.of(metric, inputs.pre, inputs.post)
    values = effect.transpose("layer", "head", "prompt").values
    values = rearrange(values, "layer head prompt -> (layer head) prompt")
    known = int(np.isfinite(values).any(1).sum())  # a screen leaves the others out
    sizes = [k for k in sizes if k <= min(spec.layers * spec.heads // 2, known)]
    if values.shape != (spec.layers * spec.heads, inputs.encoded.n_prompts):
        raise MeasureError(f"top_sets: effect {dict(effect.sizes)} is not of this pair and task")
    masks = split_half(inputs.encoded.cluster, seed)
    chosen = np.full((2, len(sizes), max(sizes), 2), -1)
    seeds = np.zeros((2, len(sizes), DRAWS), np.int64)
    found = []
    for half, judged in enumerate(masks):
        order = rank(values, masks[1 - half])
        variants = []
        for i, k in enumerate(sizes):
            best = [divmod(int(x), spec.heads) for x in order[:k]]
            chosen[half, i, :k] = best
            drawn, seeds[half, i] = _random(best, spec.heads, seed)
            variants += [heads(site, best), *(heads(site, map(tuple, draw)) for draw in drawn)]

        def some(chunk: Chunk, variants: list[Any] = variants) -> "xr.Dataset":
            donor = Donor.of(inputs.pre, chunk.encoded, variants)
            got = effects(inputs.post, chunk, donor, variants, metric=own)
            got = rearrange(got, "metric (k draw) prompt -> metric k draw prompt", k=len(sizes))
            dims = ("metric", "k", "draw", "prompt")
            return xr.Dataset(
                {"top": (("metric", "k", "prompt"), got[:, :, 0]), "random": (dims, got[:, :, 1:])},
                coords={**metric_coords(own), "k": sizes},
            )

        part = inputs.encoded.subset(judged)
        name = f"top sets, half {'AB'[half]}"
        got = inputs.over_prompts(name, some, variants=len(variants), encoded=part)
        found.append(got.assign_coords(prompt=np.flatnonzero(judged)))
    joined = xr.concat(found, "prompt", join="exact").sortby("prompt")
    joined = joined.assign(
        chosen=(("half", "k", "rank", "place"), chosen), seeds=(("half", "k", "draw"), seeds)
    ).assign_coords(
        judged_in=("prompt", np.where(masks[0], 0, 1)), cluster=("prompt", inputs.encoded.cluster)
    )
    return described(
        joined,
        "mechforget, cross-fitted",
        top=("nats", "effect of restoring the k strongest heads together"),
        random=("nats", "effect of restoring k random heads of the same layers together"),
        chosen=("1", "layer and head of the chosen heads"),
        seeds=("1", "seed of each random set"),
    )


def _random(best: list[tuple[int, int]], n_heads: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws without the chosen heads; with them where a layer has too few others."""
    layers = [layer for layer, _ in best]
    try:
        return random_sets(layers, n_heads, n_draws=DRAWS, seed=seed, exclude=best)
    except MeasureError:
        return random_sets(layers, n_heads, n_draws=DRAWS, seed=seed)
