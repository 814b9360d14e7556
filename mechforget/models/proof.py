"""A backend proves itself on each checkpoint before a number of it is believed.

Logits equal plain Hugging Face's; contributions to the residual stream sum; heads sum to the
attention output; appended rows are computed like the first ones; at every site a rewritten
activation changes nothing and a changed one moves the logits.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mechforget.checkpoints.placement import device_of
from mechforget.errors import ModelError
from mechforget.models.protocol import Point, Proof, Rewrite
from mechforget.models.sites import ACTIVATIONS, MATRICES, PROJECTION, Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 2e-5  # of the largest logit: float32 rounding through some tens of layers
BFLOAT16_TOLERANCE = 3e-2  # eight bits of mantissa
# Where a site without a point of its own is written.
POINT = {"head_out": "attn_raw", "resid_mid": "attn_out", "expert_out": "experts"}


@dataclass(frozen=True)
class Reference:
    """A plain forward pass: its ids [2, 11], its logits, and (module, "in" | "out") -> when."""

    ids: "Tensor"
    logits: "Tensor"
    order: dict[tuple[str, str], int]


def reference(hf_model: "nn.Module") -> Reference:
    """What plain Hugging Face does with some random ids, before a backend wraps the model."""
    import torch

    config: Any = hf_model.config
    generator = torch.Generator().manual_seed(0)
    counts = (config.num_attention_heads, getattr(config, "num_key_value_heads", None))
    length = next(n for n in (11, 7, 5) if n not in counts)  # so that no axis is mistaken
    ids = torch.randint(0, config.vocab_size, (2, length), generator=generator)
    ids = ids.to(device_of(hf_model))
    order: dict[tuple[str, str], int] = {}
    handles = []

    def note(place: tuple[str, str]) -> Any:
        def hook(*_: Any) -> None:
            order.setdefault(place, len(order))

        return hook

    for name, module in hf_model.named_modules():
        handles.append(module.register_forward_pre_hook(note((name, "in"))))
        handles.append(module.register_forward_hook(note((name, "out"))))
    try:
        with torch.no_grad():
            return Reference(ids, hf_model(ids, use_cache=False).logits, order)
    finally:
        for handle in handles:
            handle.remove()


def prove(model: Any, reference: Reference) -> None:
    """Sets `model.spec` and `model.proofs`, from two forward passes: one whose batch grows, and one
    in which every activation is written back as it was read.

    Raises: ModelError: the logits are not the model's, or rows or written values are not kept.
    """
    import torch

    ids, expected = reference.ids, reference.logits
    coarse = expected.element_size() < 4
    tolerance = BFLOAT16_TOLERANCE if coarse else TOLERANCE
    scale = expected.abs().max().clamp(min=1).item()
    with torch.no_grad():
        probes = _probes(model)
        logits = model.run(ids, _changes(model, probes, len(ids)))
        gap = _gap(logits[: len(ids)], expected, scale)
        if not gap <= tolerance:
            raise ModelError(
                f"{type(model).__name__} gives other logits than Hugging Face for "
                f"{model.family} (by {gap:.1e} of their scale, want <= {tolerance:.0e}): "
                "this architecture is not supported"
            )
        copies = logits[len(ids) :][[row for row, (_, site) in enumerate(probes) if site is None]]
        grown = _gap(copies, expected[:1].expand(copies.shape), scale)
        if not grown <= 2 * tolerance:
            raise ModelError(
                f"rows appended to a {model.family} batch give other logits "
                f"(by {grown:.1e} of their scale): this architecture is not supported"
            )
        moved = (logits[len(ids) :] - logits[:1]).abs().flatten(1).max(1).values
        dead = {
            site
            for (_, site), by in zip(probes, moved, strict=True)
            if site is not None and by <= tolerance / 20 * scale
        }
        written, seen = _written_back(model, ids)
        if not (by := _gap(written, logits[: len(ids)], scale)) <= 2 * tolerance:
            raise ModelError(
                f"writing a {model.family} model's activations back moves its logits by {by:.1e} "
                "of their scale: this architecture is not supported"
            )
        if (0, "q_norm") in seen:
            normed = seen[0, "q_norm"]
            model.norms_heads_first = normed.ndim == 4 and normed.shape[1] != ids.shape[1]
        residual, remainder = _residual_scale(model, seen)
        heads, rest = _heads_sum(model, seen)
    live = {site for _, site in probes if site is not None} - dead
    if residual is None or model.parallel or "attn_out" not in live:
        live.discard("resid_mid")
    if "z" not in live or not heads:
        live.discard("head_out")  # what is added at attn_raw is taken out at z
    live |= {m for m in MATRICES if PROJECTION.get(m, "head_out") in live}
    left_out = f"; left out: {', '.join(sorted(dead))}" if dead else ""
    model.proofs = (
        Proof("logits equal plain Hugging Face", True, f"by {gap:.1e} of their scale"),
        Proof("contributions sum to the residual stream", residual is not None, remainder),
        Proof("heads sum to the attention output", heads, rest),
        Proof("appended rows equal the rows they copy", True, f"by {grown:.1e} of their scale"),
        Proof("hooks are live", True, f"{len(live)} sites{left_out}"),
    )
    moe = tuple(i for i in range(model.layers) if model.serves(i, "router"))
    model.spec = Spec(
        family=model.family,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        d_model=seen[0, "resid_pre"].shape[-1],
        d_vocab=expected.shape[-1],
        sites=frozenset(live),
        residual_scale=residual,
        experts=model.experts if moe else 0,
        moe=moe,
        resident=all(p.device.type != "meta" for p in model.module.parameters()),
    )


def _gap(found: "Tensor", expected: "Tensor", scale: float) -> float:
    return ((found - expected).abs().max() / scale).item()


Probe = tuple[int, str | None]  # a layer, and the site that is changed there; None: a mere copy


def edge_layers(model: Any) -> list[int]:
    """The first and the last layer of each kind: dense ones and mixtures of experts."""
    moe = [layer for layer in range(model.layers) if model.serves(layer, "router")]
    dense = [layer for layer in range(model.layers) if layer not in moe]
    return sorted({*moe[:1], *moe[-1:], *dense[:1], *dense[-1:]})


def _probes(model: Any) -> list[Probe]:
    """Each site in the layers at the edges, and copies from the middle."""
    found: list[Probe] = [(model.layers // 2, None), (model.layers // 2, None)]
    edges = edge_layers(model)
    for site in ACTIVATIONS:
        served = [i for i in edges if model.serves(i, POINT.get(site, site))]
        found += [(layer, site) for layer in served]
    return sorted(found, key=lambda probe: probe[0])


def _changes(model: Any, probes: list[Probe], base: int) -> dict[Point, Rewrite]:
    """One row per probe is appended when its layer is entered, and changed at its site only."""
    rows: dict[Point, list[int]] = {}
    for row, (layer, site) in enumerate(probes, start=base):
        if site is not None:
            rows.setdefault((layer, POINT.get(site, site)), []).append(row)

    def change(t: "Tensor", at: list[int], name: str) -> "Tensor":
        if name == "router":  # other weights; other experts there may not be
            t[at, ..., 1] = t[at, ..., 1] * 1.5 + 0.1
        elif at:
            t[at] = t[at] * 1.5 + 0.1
        return t

    def enter(t: "Tensor", at: list[int], new: int) -> "Tensor":
        return change(t[[*range(len(t)), *[0] * new]], at, "resid_pre")

    found: dict[Point, Rewrite] = {
        (layer, "resid_pre"): partial(
            enter, at=rows.get((layer, "resid_pre"), []), new=sum(p[0] == layer for p in probes)
        )
        for layer in {layer for layer, _ in probes}
    }
    return found | {
        (layer, name): partial(change, at=at, name=name)
        for (layer, name), at in rows.items()
        if name != "resid_pre"
    }


def _written_back(model: Any, ids: "Tensor") -> "tuple[Tensor, dict[Point, Tensor]]":
    """Logits with a copy written at every point, and what the layers at the edges held."""
    seen: dict[Point, Any] = {}
    edges = edge_layers(model)
    names = dict.fromkeys([*(POINT.get(site, site) for site in ACTIVATIONS), "attn_raw", "q_norm"])

    def copy(t: "Tensor", point: Point) -> "Tensor":
        if point[0] in edges:
            seen[point] = t.clone()
        return t.clone()

    points = [
        (layer, name)
        for layer in range(model.layers)
        for name in names
        if (name != "q_norm" or model.has(layer, name)) and model.serves(layer, name)
    ]
    logits = model.run(ids, {point: partial(copy, point=point) for point in points})
    return logits, seen


def _residual_scale(model: Any, seen: "dict[Point, Tensor]") -> "tuple[float | None, str]":
    """The factor c of resid_post = resid_pre + c · (attn_out + mlp_out), if there is one."""
    worst, scales = 0.0, []
    for layer in edge_layers(model):
        written = (seen[layer, "resid_post"] - seen[layer, "resid_pre"]).double()
        parts = (seen[layer, "attn_out"] + seen[layer, "mlp_out"]).double()
        scale = ((written * parts).sum() / (parts * parts).sum()).item()
        scale = 1.0 if abs(scale - 1) < 1e-3 else scale
        scales.append(scale)
        worst = max(worst, ((written - scale * parts).norm() / written.norm()).item())
    ok = worst < (1e-4 if seen[0, "attn_out"].element_size() >= 4 else BFLOAT16_TOLERANCE)
    ok = ok and max(scales) - min(scales) < 1e-3
    return (scales[0] if ok else None), f"remainder {worst:.1e} of what a layer writes"


def _heads_sum(model: Any, seen: "dict[Point, Tensor]") -> tuple[bool, str]:
    """Σ_h z_h W_O,h + b_O is what the output projection gave."""
    import torch

    worst = 0.0
    for layer in edge_layers(model):
        z, raw = (seen[layer, name].double() for name in ("z", "attn_raw"))
        slices = (model.weight(layer, "W_O", h)[0].double() for h in range(model.heads))
        total = sum(z[:, :, h] @ w.T for h, w in enumerate(slices))
        bias = raw - total
        spread = (bias - bias[:1, :1]).abs().max() / raw.abs().max().clamp(min=1e-9)
        worst = max(worst, torch.nan_to_num(spread, nan=1e9).item())
    return worst < 1e-2, f"remainder {worst:.1e}"
