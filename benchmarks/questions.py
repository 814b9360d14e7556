"""What is asked: mechforget's measure, its peers on the same prompts, and the least arithmetic.

Effects are compared as arrays [metric, direction, layer, unit, prompt], in nats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks import bound
from benchmarks.peers import compare, gradients, places
from benchmarks.peers.from_layer import FromLayer
from benchmarks.peers.lens import Lens
from benchmarks.peers.nnsight_loop import Traces
from benchmarks.rounds import Agreement, Peer
from benchmarks.scene import Scene, plain
from mechforget import Pair, measures
from mechforget.measures.attribution import screened
from mechforget.measures.forgetting import unchanged
from mechforget.sweeps.curvature import hessian

LENS, NNSIGHT, PLAIN = "TransformerLens, `patching`", "nnsight, batched", "Hugging Face, batched"
KEEP, TOP = 32, 10  # heads that a screen keeps; the strongest, which it should find
PRODUCTS = 4  # Hessian products
ONE_PASS = "forward pass"  # an agreement's kind: no other way to the same numbers


@dataclass(frozen=True)
class Question:
    """flops: the least, None where it isn't counted; bytes: the least that is read."""

    ours: Callable[[], Any]
    peers: list[Peer]
    flops: float | None = None
    bytes: float | None = None


def difference(ours: Any, theirs: Any, unit: str = "nats", note: str = "") -> Agreement:
    """The largest, where both have a number, and beside it the largest value of theirs."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        raise ValueError(f"ours is {ours.shape}, theirs {theirs.shape}")
    both = np.isfinite(ours) & np.isfinite(theirs)
    if not both.any():
        raise ValueError("nothing to compare: no place has a number on both sides")
    value = float(abs(ours - theirs)[both].max())
    return Agreement("largest difference", value, float(abs(theirs[both]).max()), unit, note)


def effects(found: Any, scene: Scene, site: str) -> np.ndarray:
    """A measure's effects as [metric, direction, layer, unit, prompt]."""
    unit = "position" if site == "resid_pre" else "head"
    effect = found.effect.sel(metric=["log_prob", "logit_diff"], direction=["restore", "break"])
    values = effect.transpose("metric", "direction", "layer", unit, "prompt").values
    if site in ("k", "v"):  # written for each head of a group
        values = values[:, :, :, :: scene.shape.heads // scene.shape.groups]
    return values


def _in_layers(scene: Scene, site: str) -> Callable[[Any, Any, Sequence[int]], Agreement]:
    return lambda ours, theirs, layers: difference(ours[:, :, list(layers)], theirs)


def _peer(name: str, loop: Any, scene: Scene, site: str, *, from_layer: bool = False) -> Peer:
    """A loop over layers; from_layer: a layer costs the layers that follow."""
    n = scene.shape.layers
    costs = [float(n - layer) if from_layer else 1.0 for layer in range(n)]
    return Peer(name, loop.run, _in_layers(scene, site), loop.prepare, costs)


def _lens(scene: Scene, site: str, units: int) -> Peer:
    return _peer(LENS, Lens(scene.bridges, scene.sequences, site, units), scene, site)


def _from_layer(scene: Scene, site: str, units: int) -> Peer:
    loop = FromLayer(scene.plain, scene.sequences, site, units)
    return _peer(PLAIN, loop, scene, site, from_layer=True)


def heads(scene: Scene, site: str = "z") -> Question:
    """The effect of every head's (group's) value, patched at all tokens."""
    units = scene.shape.units(site)
    peers = [_lens(scene, site, units), _from_layer(scene, site, units)]
    if site == "z":
        loop = Traces(scene.plain, scene.tokenizer, scene.sequences)
        peers.insert(1, _peer(NNSIGHT, loop, scene, site))
    return Question(
        lambda: effects(measures.patching(scene.inputs, site=site), scene, site),
        peers,
        bound.sweep(scene.shape, scene.tree, site),
        _weights_once(scene),
    )


def heads_beside_lens(scene: Scene) -> Question:
    """The same with one peer, for curves."""
    question = heads(scene)
    return Question(question.ours, question.peers[:1], question.flops, question.bytes)


def positions(scene: Scene) -> Question:
    """The effect of the residual stream before each layer, a token position at a time."""
    width = scene.sequences.ids.shape[1]

    def ours() -> np.ndarray:
        found = measures.patching(scene.inputs, site="resid_pre", positions=range(width))
        return effects(found, scene, "resid_pre")

    peers = [make(scene, "resid_pre", width) for make in (_lens, _from_layer)]
    return Question(ours, peers, bound.positions(scene.shape, scene.tree), _weights_once(scene))


def attribution(scene: Scene) -> Question:
    """The first-order estimate of every head's effect: both directions and two metrics."""
    peer = gradients.Attribution(scene.plain, scene.sequences)
    loop = Peer("PyTorch, one graph", peer.run, lambda a, b, _: difference(a, b))
    return Question(
        lambda: effects(measures.attribution(scene.inputs, site="z"), scene, "z"),
        [loop, *_passes(scene)],
        _attribution_flops(scene),
        _weights_once(scene),
    )


def _attribution_flops(scene: Scene) -> float:
    each = [one.tree() for one in scene.sequences.by_prompt()]
    return bound.attribution(scene.shape, scene.tree, each)


def _passes(scene: Scene) -> list[Peer]:
    """One forward pass of one checkpoint, which is what attribution is counted in."""
    model, ids = scene.plain[1], torch.as_tensor(scene.sequences.ids, device=scene.device)

    def theirs(_: Any) -> None:
        with torch.no_grad():
            places.body(model)(ids, use_cache=False)

    def agree(*_: Any) -> Agreement:
        return Agreement(ONE_PASS, 0.0)

    return [
        Peer("a forward pass of mechforget", lambda _: unchanged(scene.inputs.post, scene.inputs.encoded), agree),
        Peer("a forward pass of Hugging Face, padded", theirs, agree),
    ]


def screen(scene: Scene) -> Question:
    """The strongest heads: all estimated, the first of them patched exactly."""
    keep = max(3, scene.shape.heads) if scene.quick else KEEP
    seen: dict[str, Any] = {}

    def ours() -> dict[str, Any]:
        estimate = measures.attribution(scene.inputs, site="z")
        few = screened(estimate, keep)
        exact = measures.patching(scene.inputs, site="z", heads=few)
        seen["kept"] = few
        return {"estimate": effects(estimate, scene, "z"), "exact": effects(exact, scene, "z")}

    def agree(ours: dict[str, Any], theirs: np.ndarray, layers: Sequence[int]) -> Agreement:
        """Of the estimate by rank; what was patched exactly has to be the same number."""
        layers = list(layers)
        mine, estimate = ours["exact"][:, :, layers], ours["estimate"][:, :, layers]
        notes = []
        if np.isfinite(mine).any():
            notes.append(f"kept heads differ by {difference(mine, theirs).value:.0e} nats at most")
        if len(layers) == scene.shape.layers:
            notes.append(_recall(theirs[0].mean(-1), seen["kept"]))
        rank = [spearmanr(a.mean(-1).ravel(), b.mean(-1).ravel())[0]
                for a, b in zip(estimate[0], theirs[0], strict=True)]  # fmt: skip
        return Agreement("rank correlation", float(min(rank)), note="; ".join(notes))

    lens = _lens(scene, "z", scene.shape.heads)
    exact = Peer(
        "mechforget, every head exactly",
        lambda _: effects(measures.patching(scene.inputs, site="z"), scene, "z"),
        lambda a, b, _: agree(a, b, range(scene.shape.layers)),
    )
    first = measures.attribution(scene.inputs, site="z")
    kept = screened(first, keep)
    flops = bound.screen(scene.shape, scene.tree, _attribution_flops(scene), kept)
    loop = Peer(lens.name, lens.run, agree, lens.prepare, lens.costs)
    return Question(ours, [loop, exact], flops, _weights_once(scene))


def _recall(effect: np.ndarray, kept: list[tuple[int, int]]) -> str:
    """effect [direction, layer, head]: of log_prob, the mean over prompts."""
    said = []
    for name, values in zip(("restore", "break"), effect, strict=True):
        order = np.argsort(-abs(values).ravel())[:TOP]
        best = [divmod(int(i), values.shape[1]) for i in order]
        said.append(f"{sum(head in kept for head in best)} in {name}")
    return f"of the {len(best)} strongest heads it keeps {' and '.join(said)}"


def drift(scene: Scene) -> Question:
    """How far the residual stream and every head moved, by CKA and four other quantities."""
    peer = compare.Drift(scene.plain, scene.sequences)

    def ours() -> dict[str, np.ndarray]:
        found = measures.drift(scene.inputs)
        last = {"cka": {"bound": "value"}, "rank": {"at": "post"}}
        table = {}
        for name in ("cka", "procrustes", "rank", "shift"):
            parts = [found[f"{of}_{name}"].sel(last.get(name, {})) for of in ("resid", "head")]
            parts = [one.mean("prompt") if name == "shift" else one for one in parts]
            table[name] = np.concatenate([one.values.ravel() for one in parts])
        return table

    def agree(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], _: Any) -> Agreement:
        each = {name: difference(ours[name], theirs[name], "").value for name in ours}
        note = ", ".join(f"{name} {value:.0e}" for name, value in each.items())
        return Agreement("largest difference", max(each.values()), 1.0, "", note)

    flops = 2 * bound.forward(scene.shape, scene.tree)
    loop = Peer("NumPy, site by site", peer.run, agree)
    return Question(ours, [loop], flops, _weights_once(scene))


def ledger(scene: Scene) -> Question:
    """Whose change of weights wrote the loss: integrated gradients over the weights."""
    each = scene.sequences.by_prompt()
    peer = gradients.Ledger(scene.plain, each)

    def ours() -> np.ndarray:
        found = measures.ledger(scene.inputs)
        peer.nodes = int(found.nodes.max())  # so that both take the same number
        by_head = found["heads"].transpose("matrix", "layer", "head", "prompt").values
        total = (found.change - found.gap).values
        return np.concatenate([by_head, np.broadcast_to(total, by_head[:1].shape)])

    loop = Peer(
        "PyTorch, a prompt at a time",
        peer.run,
        lambda a, b, prompts: difference(a[..., list(prompts)], b),
        costs=[float(one.length.sum()) for one in each],
        parts="prompts",
    )
    return Question(ours, [loop])


def curvature(scene: Scene) -> Question:
    """Products of the loss's Hessian with a vector, of all weights."""
    eager = plain(scene.folders[1], scene.device, scene.dtype, "eager")
    peer = gradients.Hessian(eager, scene.sequences, PRODUCTS)
    parts = [("attention", None), ("mlp", None), ("rest", None)]

    def ours() -> np.ndarray:
        found = []
        with hessian(scene.inputs.post, scene.inputs.encoded, parts) as (product, held):
            v = _flat([p.detach().sign() for p in held])
            for _ in range(PRODUCTS):
                v = v / v.double().norm().to(v)
                along = product(v)
                found.append(float((v.double() * along).sum()))
                v = along
        return np.array(found)

    loop = Peer(
        "PyTorch, double backward",
        peer.run,
        lambda a, b, _: difference(a, b, "nats per weight²", f"{PRODUCTS} products"),
    )
    return Question(ours, [loop])


def _flat(parts: list[Any]) -> Any:
    return torch.cat([part.flatten() for part in parts])


def weights(scene: Scene) -> Question:
    """How far every tensor moved; mechforget also says it of every head."""
    size = sum(f.stat().st_size for one in scene.folders for f in one.glob("*.safetensors"))

    def ours() -> dict[str, dict[str, float]]:
        found = measures.weights(Pair(*scene.folders), spectra=False)
        names = ("norm", "norm_pre", "largest", "changed")
        return {name: found[f"tensor_{name}"].to_series().to_dict() for name in names}

    def agree(ours: Any, theirs: Any, _: Any) -> Agreement:
        # mechforget leaves out the model's own prefix: layers.0…, not model.layers.0…
        names = {name: name if name in ours["norm"] else name.split(".", 1)[1] for name in theirs["norm"]}
        pairs = [(ours[q][names[t]], b) for q, one in theirs.items() for t, b in one.items()]
        off = max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)
        return Agreement("largest relative difference", off, 1.0, "")

    loop = Peer("both state dicts, subtracted", partial(compare.weights, scene.folders), agree)
    return Question(ours, [loop], bytes=float(size))


def _weights_once(scene: Scene) -> float:
    """Bytes of the weights of both checkpoints."""
    return 2.0 * scene.shape.weights() * torch.finfo(getattr(torch, scene.dtype)).bits / 8
