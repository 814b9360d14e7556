"""A backend must prove itself on each checkpoint before any of its numbers is used.

It is shown that the logits equal those of plain Hugging Face; that what the sublayers add sums to
the residual stream, and the heads to the attention output; that appended rows are computed like the
rows they copy, packed ones too (if they aren't, nothing is packed); that at every site, writing an
activation back changes nothing and writing another value changes the logits; and that a unit of q,
k or v changes its own heads and no others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mechforget.checkpoints.placement import device_of
from mechforget.errors import ModelError, out_of_memory
from mechforget.models import units
from mechforget.models.protocol import Model, Point, Proof, Rewrite, Unproven
from mechforget.models.sites import ACTIVATIONS, EXPERT, MATRICES, PROJECTION, Spec
from mechforget.tasks.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor, nn

CALLED = "experts are called with tokens, chosen experts and their weights"
TOLERANCE = 2e-5  # of the largest logit: float32 rounding through some tens of layers
BFLOAT16_TOLERANCE = 3e-2  # eight bits of mantissa
# What a backend may trip over in an architecture that it wasn't made for.
BREAKS = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError)
# Sites that have no point of their own, and the point at which they are written.
POINT = {"head_out": "attn_raw", "resid_mid": "attn_out", "expert_out": "experts"}


@dataclass(frozen=True)
class Reference:
    """A plain forward pass: its ids [2, position], which begin alike, its logits, and the order in
    which it came by the modules' inputs and outputs: (module, "in" or "out") -> number."""

    ids: "Tensor"
    logits: "Tensor"
    order: dict[tuple[str, str], int]


@contextmanager
def supported(hf_model: "nn.Module") -> Iterator[None]:
    """Raises: ModelError: one line, if reading or proving the model ends with an error."""
    try:
        yield
    except BREAKS as error:
        if out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:160]
        raise ModelError(
            f"{type(hf_model).__name__} cannot be read ({reason}): this architecture is not "
            "supported; mechforget doctor lists those that are"
        ) from error


def reference(hf_model: "nn.Module") -> Reference:
    """What plain Hugging Face does with some random ids, before a backend wraps the model."""
    import torch

    config: Any = hf_model.config
    generator = torch.Generator().manual_seed(0)
    counts = (config.num_attention_heads, getattr(config, "num_key_value_heads", None))
    length = next(n for n in (11, 7, 5) if n not in counts)  # so that no axis is mistaken
    ids = torch.randint(0, config.vocab_size, (2, length), generator=generator)
    shared = next(n for n in (3, 2, 4) if 2 * length - n not in counts)
    ids[1, :shared] = ids[0, :shared]
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


@dataclass(frozen=True)
class _Fed:
    """What the growing pass is fed, and where each of its tokens is in the reference."""

    ids: "Tensor"
    parent: np.ndarray | None
    at: tuple[np.ndarray, np.ndarray]  # (row, node) of its tokens
    source: tuple[np.ndarray, np.ndarray]  # [row, node]: (row, position) in the reference

    @classmethod
    def of(cls, ids: "Tensor", *, packed: bool) -> "_Fed":
        """ids: the reference's. packed: as two unlike rows, a tree of both and the second alone."""
        import torch

        rows, length = ids.shape
        if not packed:
            every = np.divmod(np.arange(rows * length), length)
            source = every[0].reshape(rows, -1), every[1].reshape(rows, -1)
            return cls(ids, None, every, source)
        which, place = np.array([0, 1, 1]), np.arange(length)
        plain = ids.cpu().numpy()[which]
        tree = Tree.of([plain], np.full(3, length), np.array([0, 0, 1]))
        source = np.zeros(tree.parent.shape, np.int64), np.zeros(tree.parent.shape, np.int64)
        at = np.repeat(tree.row, length), tree.node.ravel()
        source[0][at], source[1][at] = np.repeat(which, length), np.tile(place, 3)
        fed = torch.as_tensor(tree.fill(plain), device=ids.device)
        return cls(fed, tree.parent, at, source)


def prove(model: Unproven, reference: Reference) -> Model:
    """The same object with `spec` and `proofs`, from two forward passes: in the first, every
    activation is written back as it was read; in the second, rows are packed and the batch grows. A
    model that can't be packed runs the second pass again, with plain rows. Half precision rounds a
    larger batch differently, and where two experts nearly tie, the other one may be chosen: there
    the second pass is given the routing of the first.

    Raises: ModelError: the logits are not the model's, or rows or written values are not kept.
    """
    import torch

    ids, expected = reference.ids, reference.logits
    coarse = expected.element_size() < 4
    tolerance = BFLOAT16_TOLERANCE if coarse else TOLERANCE
    scale = expected.abs().max().clamp(min=1).item()
    with torch.no_grad():
        probes = _probes(model)
        groups = units.bit_groups(model, probes)
        written, seen = _written_back(model, ids)
        routing = {at: t for at, t in seen.items() if coarse and at[1] == "router"}
        copied = [len(ids) + row for row, (_, site) in enumerate(probes) if site is None]
        for packed in (True, False) if model.nodes else (False,):
            fed = _Fed.of(ids, packed=packed)
            moved_z: dict[int, tuple[Tensor, Tensor]] = {}
            held = {at: t[fed.source] for at, t in routing.items()}
            changes = _changes(model, probes, groups, moved_z, len(fed.ids), held)
            try:
                logits = model.run(fed.ids, changes, fed.parent)
            except BREAKS as error:
                if not packed or out_of_memory(error):
                    raise
                continue
            wanted = expected[fed.source]
            gap = _gap(logits[: len(ids)][fed.at], wanted[fed.at], scale)
            nodes = [fed.at[1][fed.at[0] == r % len(ids)] for r in copied]
            made = torch.cat([logits[r, n] for r, n in zip(copied, nodes, strict=True)])
            aimed = [wanted[r % len(ids), n] for r, n in zip(copied, nodes, strict=True)]
            grown = _gap(made, torch.cat(aimed), scale)
            if gap <= tolerance and grown <= 2 * tolerance:
                break
        if not gap <= tolerance:
            raise ModelError(
                f"{type(model).__name__} gives other logits than Hugging Face for "
                f"{model.family} (by {gap:.1e} of their scale, want <= {tolerance:.0e}): "
                "this architecture is not supported"
            )
        if not grown <= 2 * tolerance:
            raise ModelError(
                f"rows appended to a {model.family} batch give other logits "
                f"(by {grown:.1e} of their scale): this architecture is not supported"
            )
        unchanged = logits[[row % len(ids) for row in range(len(ids), len(logits))]]
        moved = (logits[len(ids) :] - unchanged).abs().flatten(1).max(1).values
        dead = {
            site
            for (_, site), by in zip(probes, moved, strict=True)
            if site is not None and by <= tolerance / 20 * scale
        }
        if not (by := _gap(written, expected, scale)) <= 2 * tolerance:
            raise ModelError(
                f"writing a {model.family} model's activations back moves its logits by {by:.1e} "
                "of their scale: this architecture is not supported"
            )
        if (0, "q_norm") in seen:
            normed = seen[0, "q_norm"]
            model.norms_heads_first = normed.ndim == 4 and normed.shape[1] != ids.shape[1]
        residual, remainder = _residual_scale(model, seen)
        dead |= units.misnamed(model, groups, moved_z, seen, dead, tolerance)
        heads, rest = _heads_sum(model, seen)
    live = {site for _, site in probes if site is not None} - dead
    if residual is None or model.parallel or "attn_out" not in live:
        live.discard("resid_mid")
    if "z" not in live or not heads:
        live.discard("head_out")  # what is added at attn_raw is taken out at z
    live |= {m for m in MATRICES if PROJECTION.get(m, "head_out") in live}
    live |= {"W_expert"} if "expert_out" in live else set()
    left_out = f"; left out: {', '.join(sorted(dead))}" if dead else ""
    moe = tuple(i for i in range(model.layers) if model.serves(i, "router"))
    proven = cast(Model, model)
    proven.proofs = (
        Proof("logits equal plain Hugging Face", True, f"by {gap:.1e} of their scale"),
        Proof("contributions sum to the residual stream", residual is not None, remainder),
        Proof("heads sum to the attention output", heads, rest),
        Proof("appended rows equal the rows they copy", True, f"by {grown:.1e} of their scale"),
        Proof("hooks are live", True, f"{len(live)} sites{left_out}"),
        *_mixture(model, moe),
    )
    proven.spec = Spec(
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
        nodes=model.nodes if packed else 0,
    )
    return proven


def _mixture(model: Unproven, moe: tuple[int, ...]) -> list[Proof]:
    """Of a mixture of experts: whether any layer calls its experts in the way that is read here.
    transformers has changed that way before, and a server's version is not the client's."""
    if not model.experts:
        return []
    layers = f"layers {', '.join(map(str, moe))}" if moe else "no layer"
    return [Proof(CALLED, bool(moe), f"{model.experts} experts, {layers}")]


def _gap(found: "Tensor", expected: "Tensor", scale: float) -> float:
    return ((found - expected).abs().max() / scale).item()


Probe = tuple[int, str | None]  # a layer, and the site that is changed there; None: only a copy


def edge_layers(model: Unproven) -> list[int]:
    """The first and the last layer of each kind: dense ones and mixtures of experts."""
    moe = [layer for layer in range(model.layers) if model.serves(layer, "router")]
    dense = [layer for layer in range(model.layers) if layer not in moe]
    return sorted({*moe[:1], *moe[-1:], *dense[:1], *dense[-1:]})


def _probes(model: Unproven) -> list[Probe]:
    """Every site in the first and last layer of each kind, and two copies from the middle."""
    found: list[Probe] = [(model.layers // 2, None), (model.layers // 2, None)]
    edges = edge_layers(model)
    for site in ACTIVATIONS:
        of_kind = [
            i for i in range(model.layers) if site not in EXPERT or model.serves(i, "router")
        ]
        if all(model.serves(layer, POINT.get(site, site)) for layer in of_kind):
            found += [(layer, site) for layer in edges if layer in of_kind]
    return sorted(found, key=lambda probe: probe[0])


def _changes(
    model: Unproven,
    probes: list[Probe],
    groups: dict[int, list[units.UnitGroup]],
    moved_z: "dict[int, tuple[Tensor, Tensor]]",
    base: int,
    routing: "dict[Point, Tensor]",
) -> dict[Point, Rewrite]:
    """The rewrites of the growing pass. Row r copies row r modulo `base`. Each probe's row is
    appended where its layer is entered, and changed at its site only. The rows of a layer's unit
    groups are appended below these; they are dropped at the layer's end, after their z and that of
    the rows that they copy have been put into `moved_z`.
    `routing`: the routing that is written in place of the model's own.
    """
    rows: dict[Point, list[int]] = {at: [] for at in routing}
    for row, (layer, site) in enumerate(probes, start=base):
        if site is not None:
            rows.setdefault((layer, POINT.get(site, site)), []).append(row)

    def change(t: "Tensor", at: list[int], name: str, held: "Tensor | None" = None) -> "Tensor":
        if held is not None:
            t = held[[r % base for r in range(len(t))]]
        if name == "router":  # other weights; there may be no other experts
            t[at, ..., 1] = t[at, ..., 1] * 1.5 + 0.1
        elif at:
            t[at] = 0.1 - t[at]  # a norm undoes a scale or a shift, not a change of sign
        return t

    def enter(t: "Tensor", layer: int) -> "Tensor":
        before, here = first_row(layer), first_row(layer + 1) - first_row(layer)
        new = range(before, before + here + len(groups.get(layer, ())))
        t = t[[*range(before), *(r % base for r in new)]]
        return change(t, rows.get((layer, "resid_pre"), []), "resid_pre")

    def first_row(layer: int) -> int:
        return base + sum(where < layer for where, _ in probes)

    def within(t: "Tensor", layer: int, name: str) -> "Tensor":
        for row, (site, some) in enumerate(groups[layer], start=first_row(layer + 1)):
            if site == name:  # a query acts at its own position: the last is left alone
                end = -1 if name == "q" else None
                t[row, :end, some] = 0.1 - t[row, :end, some]
        if name == "z":
            own = range(first_row(layer + 1), len(t))
            moved_z[layer] = t[list(own)], t[[r % base for r in own]]
        return change(t, rows.get((layer, name), []), name)

    entered = {layer for layer, _ in probes} | {layer + 1 for layer in groups}
    found: dict[Point, Rewrite] = {
        (layer, "resid_pre" if layer < model.layers else "unembed"): partial(enter, layer=layer)
        for layer in entered
    }
    for (layer, name), at in rows.items():
        if layer in groups and name in ("q", "k", "v", "z"):
            found[layer, name] = partial(within, layer=layer, name=name)
        elif name != "resid_pre":
            found[layer, name] = partial(change, at=at, name=name, held=routing.get((layer, name)))
    return found


def _written_back(model: Unproven, ids: "Tensor") -> "tuple[Tensor, dict[Point, Tensor]]":
    """The logits with a copy written back at every point, and the activations of the layers at the
    edges.

    Raises: ModelError: heads are wider in one layer than in another, so they can't be compared.
    """
    seen: dict[Point, Any] = {}
    width: dict[int, int] = {}
    edges = edge_layers(model)
    names = dict.fromkeys([*(POINT.get(site, site) for site in ACTIVATIONS), "attn_raw", "q_norm"])

    def copy(t: "Tensor", point: Point) -> "Tensor":
        if point[0] in edges or point[1] == "router":
            seen[point] = t.clone()
        if point[1] == "z":
            width[point[0]] = t.shape[-1]
        return t.clone()

    points = [
        (layer, name)
        for layer in range(model.layers)
        for name in names
        if (name != "q_norm" or model.has(layer, name)) and model.serves(layer, name)
    ]
    logits = model.run(ids, {point: partial(copy, point=point) for point in points})
    for layer, found in width.items():
        if found != width[0]:
            raise ModelError(
                f"a {model.family} model's heads are {width[0]} wide in layer 0 and {found} in "
                f"layer {layer}, want one width: this architecture is not supported"
            )
    return logits, seen


def _residual_scale(model: Unproven, seen: "dict[Point, Tensor]") -> "tuple[float | None, str]":
    """The factor c in resid_post = resid_pre + c · (attn_out + mlp_out), or None if there is none;
    and what is left over."""
    worst, scales = 0.0, []
    for layer in edge_layers(model):
        post = seen[layer, "resid_post"]  # what enters a layer may come from another device
        written = (post - seen[layer, "resid_pre"].to(post)).double()
        parts = (seen[layer, "attn_out"] + seen[layer, "mlp_out"]).double()
        scale = ((written * parts).sum() / (parts * parts).sum()).item()
        scale = 1.0 if abs(scale - 1) < 1e-3 else scale
        scales.append(scale)
        worst = max(worst, ((written - scale * parts).norm() / written.norm()).item())
    ok = worst < (1e-4 if seen[0, "attn_out"].element_size() >= 4 else BFLOAT16_TOLERANCE)
    ok = ok and max(scales) - min(scales) < 1e-3
    return (scales[0] if ok else None), f"remainder {worst:.1e} of what a layer writes"


def _heads_sum(model: Unproven, seen: "dict[Point, Tensor]") -> tuple[bool, str]:
    """Whether Σ_h z_h W_O,h + b_O equals the output projection's output, and what is left over."""
    import torch

    worst = 0.0
    for layer in edge_layers(model):
        z, raw = (seen[layer, name].double() for name in ("z", "attn_raw"))
        slices = (model.weight(layer, "W_O", h)[0].to(z) for h in range(model.heads))
        total = sum(z[:, :, h] @ w.T for h, w in enumerate(slices))
        bias = raw - total
        spread = (bias - bias[:1, :1]).abs().max() / raw.abs().max().clamp(min=1e-9)
        worst = max(worst, torch.nan_to_num(spread, nan=1e9).item())
    return worst < 1e-2, f"remainder {worst:.1e}"
