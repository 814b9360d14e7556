"""Integrated gradients over the weights (the forgetting ledger): whose change wrote the loss?"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.errors import MeasureError
from mechforget.measures.explained import described
from mechforget.measures.forgetting import unchanged
from mechforget.measures.inputs import Inputs, measure
from mechforget.models.beside import is_served
from mechforget.models.cells import cells
from mechforget.models.protocol import Model, Point, Rewrite
from mechforget.models.sites import Spec
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.donor import capture, forward
from mechforget.sweeps.shares import Key, shares
from mechforget.sweeps.uses import HeadOutput
from mechforget.sweeps.weights import between

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor
    from torch.nn import Parameter

    from mechforget.tasks import Encoded

FIRST, MOST = 8, 128  # nodes of the quadrature
RELATIVE, ABSOLUTE = 0.01, 0.001  # what it may miss: of the change, and in nats
HEAD, GROUP = ("W_Q", "W_O"), ("W_K", "W_V")
MLP = ("W_gate", "W_in", "W_out", "mlp")
REST = ("embed", "unembed", "final")


@measure
def ledger(inputs: Inputs) -> "xr.Dataset":
    """Integrated gradients over the weights: each weight's share in the rise of the old task's loss
    L = -log_prob, along the straight line from pre's weights to post's.

    L(post) - L(pre) = ∫₀¹ ∇L(θ_pre + tΔ)·Δ dt, Δ = θ_post - θ_pre, by Gauss-Legendre
    quadrature. The share of some weights is their part of the dot product; positive is harm. The
    number of nodes doubles from 8 until the mean error is below max(1 % of the change, 0.001 nats),
    or 128 are reached.
    In a mixture of experts the routing is held at what pre recorded, along the whole path: hard
    routing makes L jump, so it has no gradient. `routing` is the jump at the end of the path, when
    post's own routing takes its place.
    Returns: nats, per prompt: `heads` (matrix W_Q, W_O; layer, head), `groups` (kv_matrix W_K, W_V;
        layer, group), `mlps` (mlp_matrix, layer), `others` (layer: norms, output biases, sinks,
        shared latents), `rest` (part: embeddings, unembedding, last norm; a tied matrix counts
        once, as embed); of mixtures `experts` (moe_layer, expert), `routers` (0: it is held) and
        `routing`. They sum to `change`, L(post) - L(pre), but for `gap`, the quadrature's error.
        `nodes` (prompt).
    Raises: MeasureError: a model on a server (the weights of both checkpoints must be here), or
        an overflow.
    Source: the fundamental theorem of calculus; cf. integrated gradients, Sundararajan et al. 2017,
        1703.01365. Blind: another path from pre to post would share out differently.
    Examples:
        >>> found = ledger(planted)
        >>> heads = found["heads"].sel(matrix="W_O").mean("prompt")
        >>> np.argwhere(heads.values).tolist()  # (layer, head): only this W_O was changed
        [[1, 2]]
        >>> bool(abs(total(found) + found.gap - found.change).max() < 1e-9)
        True
    """
    if is_served(inputs.pre) or is_served(inputs.post):
        raise MeasureError(
            "ledger needs the weights of both checkpoints in one place: use backend nnsight or "
            "transformer_lens, or leave it out"
        )

    def some(chunk: Chunk) -> "xr.Dataset":
        found, change, gap, routing, nodes = _written(inputs, chunk.encoded)
        return labelled(found, change, gap, routing, nodes, inputs.post.spec, chunk.encoded)

    found = inputs.over_prompts("ledger", some, variants=inputs.post.spec.layers, across=False)
    return described(found, "1703.01365", **descriptions("the rise of the loss"))


def _written(inputs: Inputs, encoded: "Encoded") -> tuple[Any, ...]:
    pre, post = inputs.pre, inputs.post
    ends = [-unchanged(model, encoded)["log_prob"] for model in (pre, post)]
    held, routing = routing_held(pre, encoded), np.zeros(encoded.n_prompts)
    if held:
        with between(pre, post, 1.0):
            routing = ends[1] - _loss(pre, encoded, held)
    found, gap, nodes = along(inputs, encoded, ends[1] - ends[0] - routing, held)
    return found, ends[1] - ends[0], gap, routing, nodes


def routing_held(pre: Model, encoded: "Encoded") -> "dict[Point, Rewrite]":
    """Rewrites that give a mixture of experts pre's recorded routing."""
    recorded = capture(pre, encoded.fed, [(at, "router") for at in pre.spec.moe], encoded.parent)
    return {point: lambda t, value=value: value for point, value in recorded.items()}


def along(
    inputs: Inputs,
    encoded: "Encoded",
    change: np.ndarray,
    held: "Mapping[Point, Rewrite]",
    of: HeadOutput | None = None,
) -> tuple[dict[Key, np.ndarray], np.ndarray, int]:
    """-∫ ∇·Δ of each cell [prompt], what they miss of `change`, and how many nodes it took."""
    pre, post = inputs.pre, inputs.post
    step, own = Step(pre, post), cells(pre)
    nodes = FIRST
    while True:
        found: dict[Key, np.ndarray] = {}
        for t, weight in zip(*on_unit_interval(nodes), strict=True):
            with between(pre, post, t):
                here, _ = shares(pre, encoded, step, own, of=of, rewrites=held)
            for key, value in here.items():
                found[key] = found.get(key, 0.0) - weight * value
        gap = change - sum(found.values(), np.zeros(encoded.n_prompts))
        if not np.isfinite(gap).all():
            raise MeasureError(
                "the loss or its gradient overflows between the checkpoints: use float32"
            )
        if abs(gap.mean()) <= max(RELATIVE * abs(change.mean()), ABSOLUTE) or nodes >= MOST:
            return found, gap, nodes
        nodes *= 2


def on_unit_interval(nodes: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes and weights for ∫₀¹."""
    t, weight = np.polynomial.legendre.leggauss(nodes)
    return list((t + 1) / 2), list(weight / 2)


def _loss(model: Model, encoded: "Encoded", rewrites: Mapping[Any, Any]) -> np.ndarray:
    """-log_prob [prompt] with these rewrites in place."""
    import torch

    read = encoded.read_at
    last = {(model.spec.layers, "unembed"): lambda t: t[read][None]}
    with torch.no_grad():
        logits = forward(model, encoded, {**rewrites, **last})[0].double()
    log_prob = logits.log_softmax(-1)[range(len(encoded.read_target)), encoded.read_target]
    return -encoded.score(log_prob.cpu().numpy(), np.zeros(len(log_prob), bool))["log_prob"]


class Step(Mapping["Parameter", "Tensor"]):
    """θ_post - θ_pre of pre's parameters that differ, each made when it is asked for."""

    def __init__(self, pre: Model, post: Model) -> None:
        import torch

        pairs = zip(pre.module.parameters(), post.module.parameters(), strict=True)
        self._ends = {
            p: (p.data, q.data) for p, q in pairs if not torch.equal(p.data, q.data.to(p.device))
        }

    def __getitem__(self, p: "Parameter") -> "Tensor":
        start, end = self._ends[p]
        return end.to(start.device) - start

    def __iter__(self) -> "Iterator[Parameter]":
        return iter(self._ends)

    def __len__(self) -> int:
        return len(self._ends)


def labelled(
    found: Mapping[Key, np.ndarray],
    change: np.ndarray,
    gap: np.ndarray,
    routing: np.ndarray,
    nodes: int,
    spec: Spec,
    encoded: "Encoded",
) -> "xr.Dataset":
    """{cell: [prompt]} with its axes named."""
    import xarray as xr

    n = encoded.n_prompts

    def table(parts: tuple[str, ...], units: int | None) -> np.ndarray:
        value = np.zeros((len(parts), spec.layers, units or 1, n))
        for i, part in enumerate(parts):
            for layer in range(spec.layers):
                for unit in range(units or 1):
                    key = (part, layer, None if units is None else unit)
                    value[i, layer, unit] = found.get(key, 0.0)
        return value

    data: dict[str, Any] = {
        "heads": (("matrix", "layer", "head", "prompt"), table(HEAD, spec.heads)),
        "groups": (("kv_matrix", "layer", "group", "prompt"), table(GROUP, spec.kv_heads)),
        "mlps": (("mlp_matrix", "layer", "prompt"), table(MLP, None)[:, :, 0]),
        "others": (("layer", "prompt"), table(("other",), None)[0, :, 0]),
        "rest": (
            ("part", "prompt"),
            np.stack([found.get((part, None, None), np.zeros(n)) for part in REST]),
        ),
        "change": ("prompt", change),
        "gap": ("prompt", gap),
        "nodes": ("prompt", np.full(n, nodes)),
    }
    coords: dict[str, Any] = {
        "matrix": list(HEAD),
        "kv_matrix": list(GROUP),
        "mlp_matrix": list(MLP),
        "part": list(REST),
        "layer": range(spec.layers),
        "head": range(spec.heads),
        "group": range(spec.kv_heads),
        "cluster": ("prompt", encoded.cluster),
    }
    if spec.moe:
        moe = list(spec.moe)
        data["experts"] = (
            ("moe_layer", "expert", "prompt"),
            table(("expert",), spec.experts)[0, moe],
        )
        data["routers"] = (("moe_layer", "prompt"), table(("router",), None)[0, moe, 0])
        data["routing"] = ("prompt", routing)
        coords |= {"moe_layer": moe, "expert": range(spec.experts)}
    return xr.Dataset(data, coords=coords)


def descriptions(what: str) -> dict[str, tuple[str, str]]:
    """The units and names of what `labelled` returns, as shares of `what`."""
    shares = {
        "heads": "share of a head's W_Q or W_O",
        "groups": "share of a group's W_K or W_V",
        "mlps": "share of an MLP's matrix",
        "others": "share of a layer's other weights",
        "rest": "share of the weights outside the layers",
        "experts": "share of an expert",
        "routers": "share of a router",
        "routing": "share of post's own routing",
    }
    found = {name: ("nats", f"{text} in {what}") for name, text in shares.items()}
    found |= {"change": ("nats", what), "gap": ("nats", "error of the quadrature")}
    return found | {"nodes": ("1", "nodes of the quadrature")}


def by_head(found: "xr.Dataset") -> "xr.DataArray":
    """The ledger's shares by head, (layer, head, prompt): those of its own W_Q and W_O, and its
    part of those of its group's W_K and W_V, which are divided equally among the group's heads."""
    heads, groups = found.sizes["head"], found.sizes["group"]
    group = found["groups"].sum("kv_matrix").isel(group=np.arange(heads) * groups // heads)
    shared = group.rename(group="head").assign_coords(head=found["heads"]["head"]) * (
        groups / heads
    )
    return found["heads"].sum("matrix") + shared


def total(found: "xr.Dataset") -> "xr.DataArray":
    """(prompt): everything but the gap."""
    names = ("heads", "groups", "mlps", "others", "rest", "experts", "routers", "routing")
    arrays = [found[name] for name in names if name in found]
    return sum((a.sum([d for d in a.dims if d != "prompt"]) for a in arrays), 0.0 * found["change"])
