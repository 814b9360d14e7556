"""What changed: representations, the loss by weights, its curvature, and the weights themselves."""

from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import bound
from benchmarks.peers import compare, gradients
from benchmarks.questions.question import Question, difference, weights_once
from benchmarks.rounds import Agreement, Peer
from benchmarks.scene import Scene, plain
from mechforget import Pair, measures
from mechforget.sweeps.curvature import hessian

PRODUCTS = 4  # with the Hessian


def drift(scene: Scene) -> Question:
    """How far the residual stream and every head moved, by CKA and four other quantities."""
    inputs, peer = scene.inputs, compare.Drift(scene.plain, scene.sequences)

    def ours() -> dict[str, np.ndarray]:
        found = measures.drift(inputs)
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
    return Question(ours, [loop], flops, weights_once(scene))


def ledger(scene: Scene) -> Question:
    """Whose change of weights wrote the loss: integrated gradients over the weights."""
    inputs, each = scene.inputs, scene.sequences.by_prompt()
    peer = gradients.Ledger(scene.plain, each)

    def ours() -> np.ndarray:
        found = measures.ledger(inputs)
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
    inputs, eager = scene.inputs, plain(scene.folders[1], scene.device, "eager")
    peer = gradients.Hessian(eager, scene.sequences, PRODUCTS)
    parts = [("attention", None), ("mlp", None), ("rest", None)]

    def ours() -> np.ndarray:
        found = []
        with hessian(inputs.post, inputs.encoded, parts) as (product, held):
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
        def own(name: str) -> str:
            return name if name in ours["norm"] else name.split(".", 1)[1]

        pairs = [(ours[q][own(t)], b) for q, one in theirs.items() for t, b in one.items()]
        off = max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)
        return Agreement("largest relative difference", off, 1.0, "")

    loop = Peer("both state dicts, subtracted", partial(compare.weights, scene.folders), agree)
    return Question(ours, [loop], bytes=float(size))
