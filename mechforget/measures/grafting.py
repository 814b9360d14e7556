"""Weight grafting: where the damage was written."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.errors import MeasureError
from mechforget.measures.explained import described
from mechforget.measures.forgetting import unchanged
from mechforget.measures.inputs import DIRECTIONS, Inputs, measure, metric_coords, metric_names
from mechforget.measures.patching import cross, labelled
from mechforget.models.sites import MATRICES, PARAMETER
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.gradients import PartOfLayer
from mechforget.sweeps.metric import Metric
from mechforget.sweeps.plan import Variant, graft, single
from mechforget.sweeps.weights import borrowed

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.sweeps.metric import Function
    from mechforget.tasks import Encoded

SOURCE = "cf. Prakash et al. 2024"


@measure
def grafting(
    inputs: Inputs,
    *,
    matrices: Sequence[str] = ("all",),
    heads: Collection[tuple[int, int]] | None = None,
    metric: "Function | None" = None,
) -> "xr.Dataset":
    """Effect of replacing a head's weights in one checkpoint by the other's.

    restore = m(post with W <- pre) - m(post); break = m(pre) - m(pre with W <- post). The head
    computes on the recipient's own stream. Exact.
    Args: matrices: of q, k, v, o (a head's slice, biases and q/k norms with it; k and v: its
        group's, computed once and written for each of its heads) and all (q and o slices plus the
        group's k and v). heads: (layer, head) to graft; the others are NaN. None: all.
        metric: one of your own besides the built-in ones, see `sweeps.metric.Metric.of`.
    Returns: `effect` (metric, direction, matrix, layer, head, prompt), nats; `group` (head).
    Source: cf. Prakash et al. 2024. Blind to damage in norms, MLPs,
        embeddings and output biases: `grafting_modules` has those; `grafting_experts` experts.
    Examples:
        >>> effect = grafting(planted).effect.sel(metric="log_prob", direction="restore")
        >>> size = abs(effect.sel(matrix="all")).max("prompt")
        >>> np.argwhere(size.values).tolist()  # (layer, head): only the planted one
        [[1, 2]]
    """
    spec, own = inputs.post.spec, Metric.of(metric, inputs.pre, inputs.post)
    known = {**PARAMETER, "all": "all"}
    if unknown := [m for m in matrices if m not in known]:
        raise MeasureError(f"matrices {', '.join(unknown)}: want some of {', '.join(known)}")
    for matrix in matrices:
        for site in MATRICES if matrix == "all" else (PARAMETER[matrix],):
            spec.require(site)
    every = [(layer, head) for layer in range(spec.layers) for head in range(spec.heads)]
    cells = [
        (matrix, layer, head)
        for matrix in matrices
        for layer, head in (every if heads is None else sorted(heads))
    ]
    variants = [graft(spec, layer, head, known[matrix]) for matrix, layer, head in cells]
    unique: dict[Variant, int] = {}  # heads of a group share their k and v
    which = [unique.setdefault(variant, len(unique)) for variant in variants]

    def some(chunk: Chunk) -> "xr.Dataset":
        import xarray as xr

        encoded = chunk.encoded
        found = cross(inputs, chunk, list(unique), own)
        shape = (
            len(metric_names(own)),
            2,
            len(matrices),
            spec.layers,
            spec.heads,
            encoded.n_prompts,
        )
        effect = np.full(shape, np.nan)
        for (matrix, layer, head), index in zip(cells, which, strict=True):
            at = matrices.index(matrix), layer, head
            for d, direction in enumerate(DIRECTIONS):
                effect[:, d, *at] = found[direction][:, index]
        dims = ("metric", "direction", "matrix", "layer", "head", "prompt")
        return xr.Dataset(
            {"effect": (dims, effect)},
            coords={
                **metric_coords(own),
                "direction": list(DIRECTIONS),
                "matrix": list(matrices),
                "layer": range(spec.layers),
                "head": range(spec.heads),
                "group": ("head", [spec.group(h) for h in range(spec.heads)]),
                "cluster": ("prompt", encoded.cluster),
            },
        )

    name = f"grafting {' '.join(matrices)}"
    found = inputs.over_prompts(name, some, variants=len(unique))
    return described(found, SOURCE, effect=("nats", "effect of grafting a head's weights"))


@measure
def grafting_modules(inputs: Inputs, *, metric: "Function | None" = None) -> "xr.Dataset":
    """Effect of grafting each layer's MLP, each whole layer (attention, MLP and norms), and the
    `rest`: all norms, embeddings, unembedding, output biases, attention sinks and shared latents,
    together.

    metric: as in `grafting`.
    Returns: `mlp`, `block` (metric, direction, layer, prompt), `rest` (metric, direction,
        prompt), nats.
    Examples:
        >>> found = grafting_modules(planted)
        >>> float(abs(found.mlp).max()), float(abs(found.rest).max())  # only attention was changed
        (0.0, 0.0)
    """
    spec, own = inputs.post.spec, Metric.of(metric, inputs.pre, inputs.post)
    n = spec.layers
    mlps: list[list[PartOfLayer]] = [[("mlp", layer)] for layer in range(n)]
    blocks: list[list[PartOfLayer]] = [
        [("attention", layer), ("mlp", layer), ("rest", layer)] for layer in range(n)
    ]

    def some(chunk: Chunk) -> "xr.Dataset":
        import xarray as xr

        encoded = chunk.encoded
        effect = graft_parts(inputs, encoded, [*mlps, *blocks, [("rest", None)]], own)
        coords: dict[str, Any] = {
            **metric_coords(own),
            "direction": list(DIRECTIONS),
            "layer": range(spec.layers),
            "cluster": ("prompt", encoded.cluster),
        }
        return xr.Dataset(
            {
                "mlp": (("metric", "direction", "layer", "prompt"), effect[:, :, :n]),
                "block": (("metric", "direction", "layer", "prompt"), effect[:, :, n:-1]),
                "rest": (("metric", "direction", "prompt"), effect[:, :, -1]),
            },
            coords=coords,
        )

    return described(
        inputs.over_prompts("grafting modules", some, variants=0),
        SOURCE,
        mlp=("nats", "effect of grafting a layer's MLP"),
        block=("nats", "effect of grafting a whole layer"),
        rest=("nats", "effect of grafting norms, embeddings, unembedding and output biases"),
    )


@measure
def grafting_experts(inputs: Inputs, *, metric: "Function | None" = None) -> "xr.Dataset":
    """Effect of grafting each expert of a mixture. The donor's expert computes on the recipient's
    own stream, for the tokens that the recipient routes to that expert. Exact.

    metric: as in `grafting`.
    Returns: `effect` (metric, direction, layer, expert, prompt), nats; layers: the mixtures.
    Raises: SweepError: this backend shows no experts. Blind to gates: `routing_restored` has those.
    Examples:
        >>> float(abs(grafting_experts(mixture).effect).max())  # no expert was changed
        0.0
    """
    spec, own = inputs.post.spec, Metric.of(metric, inputs.pre, inputs.post)
    variants = single(spec, "W_expert")

    def some(chunk: Chunk) -> "xr.Dataset":
        found = cross(inputs, chunk, variants, own)
        return labelled(found, spec, "W_expert", None, chunk.encoded, own)

    found = inputs.over_prompts("grafting experts", some, variants=len(variants))
    return described(found, SOURCE, effect=("nats", "effect of grafting an expert's weights"))


def graft_parts(
    inputs: Inputs, encoded: "Encoded", sets: list[list[PartOfLayer]], own: Metric | None = None
) -> np.ndarray:
    """Effect [metric, direction, set, prompt] of taking each set of parts from the other."""
    found = []
    for direction in DIRECTIONS:
        restore = direction == "restore"
        model, other = (inputs.post, inputs.pre) if restore else (inputs.pre, inputs.post)
        scores = [unchanged(model, encoded, own)]
        for parts in sets:
            with borrowed(model, other, parts):
                scores.append(unchanged(model, encoded, own))
        sign = 1 if restore else -1
        names = metric_names(own)
        found.append([[sign * (s[m] - scores[0][m]) for s in scores[1:]] for m in names])
    return np.stack(found, axis=1)
