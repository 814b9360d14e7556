"""Sweeps: every head, group, or position of every layer, patched one by one.

Effects are compared as arrays [metric, direction, layer, unit, prompt], in nats.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import bound
from benchmarks.peers.from_layer import FromLayer
from benchmarks.peers.lens import Lens
from benchmarks.peers.nnsight_loop import Traces
from benchmarks.questions.question import Question, difference, weights_once
from benchmarks.rounds import Agreement, Peer
from benchmarks.scene import Scene
from mechforget import measures

LENS, NNSIGHT, PLAIN = "TransformerLens, `patching`", "nnsight, batched", "Hugging Face, batched"


def heads(scene: Scene, site: str = "z") -> Question:
    """The effect of every head's (group's) value, patched at all tokens."""
    inputs, units = scene.inputs, scene.shape.units(site)
    batched = [_nnsight(scene)] if site == "z" else []
    peers = [lens(scene, site, units), *batched, _from_layer(scene, site, units)]
    return Question(
        lambda: effects(measures.patching(inputs, site=site), scene, site),
        peers,
        bound.sweep(scene.shape, scene.tree, site),
        weights_once(scene),
    )


def heads_beside_lens(scene: Scene) -> Question:
    """The same with one peer, for curves."""
    question = heads(scene)
    return Question(question.ours, question.peers[:1], question.flops, question.bytes)


def positions(scene: Scene) -> Question:
    """The effect of the residual stream before each layer, a token position at a time."""
    inputs, width = scene.inputs, scene.sequences.ids.shape[1]

    def ours() -> np.ndarray:
        found = measures.patching(inputs, site="resid_pre", positions=range(width))
        return effects(found, scene, "resid_pre")

    peers = [make(scene, "resid_pre", width) for make in (lens, _from_layer)]
    return Question(ours, peers, bound.positions(scene.shape, scene.tree), weights_once(scene))


def effects(found: Any, scene: Scene, site: str) -> np.ndarray:
    """A measure's effects as [metric, direction, layer, unit, prompt]."""
    unit = "position" if site == "resid_pre" else "head"
    effect = found.effect.sel(metric=["log_prob", "logit_diff"], direction=["restore", "break"])
    values = effect.transpose("metric", "direction", "layer", unit, "prompt").values
    if site in ("k", "v"):  # written for each head of a group
        values = values[:, :, :, :: scene.shape.heads // scene.shape.groups]
    return values


def lens(scene: Scene, site: str, units: int) -> Peer:
    loop = Lens(scene.bridges, scene.sequences, site, units)
    return Peer(LENS, loop.run, _in_layers, loop.prepare, [1.0] * scene.shape.layers)


def _from_layer(scene: Scene, site: str, units: int) -> Peer:
    """A layer costs as many layers as follow, and itself."""
    loop, n = FromLayer(scene.plain, scene.sequences, site, units), scene.shape.layers
    return Peer(PLAIN, loop.run, _in_layers, loop.prepare, [float(n - i) for i in range(n)])


def _nnsight(scene: Scene) -> Peer:
    loop = Traces(scene.plain, scene.tokenizer, scene.sequences)
    return Peer(NNSIGHT, loop.run, _in_layers, loop.prepare, [1.0] * scene.shape.layers)


def _in_layers(ours: np.ndarray, theirs: np.ndarray, layers: Sequence[int]) -> Agreement:
    return difference(ours[:, :, list(layers)], theirs)
