"""Attribution, and the screen that it makes possible."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks import bound
from benchmarks.peers import places
from benchmarks.peers.gradients import Attribution
from benchmarks.questions.question import Question, difference, weights_once
from benchmarks.questions.sweeps import effects, lens
from benchmarks.rounds import Agreement, Peer
from benchmarks.scene import Scene
from mechforget import measures
from mechforget.measures.attribution import screened
from mechforget.measures.forgetting import unchanged

KEEP, TOP = 32, 10  # heads that a screen keeps; the strongest, which it should find
PASS = "a forward pass of mechforget, padded"
ONE_PASS = "forward pass"  # an agreement's kind: no other way to the same numbers


def attribution(scene: Scene) -> Question:
    """The first-order estimate of every head's effect: both directions and two metrics."""
    inputs, peer = scene.inputs, Attribution(scene.plain, scene.sequences)
    loop = Peer("PyTorch, one graph", peer.run, lambda a, b, _: difference(a, b))
    return Question(
        lambda: effects(measures.attribution(inputs, site="z"), scene, "z"),
        [loop, *_passes(scene)],
        _attribution_flops(scene),
        weights_once(scene),
    )


def _attribution_flops(scene: Scene) -> float:
    each = [one.tree() for one in scene.sequences.by_prompt()]
    return bound.attribution(scene.shape, scene.tree, each)


def _passes(scene: Scene) -> list[Peer]:
    """One forward pass of one checkpoint, which is what attribution is counted in: over prompts in
    rows of their own, because a token that prompts share has another gradient for each."""
    model, ids = scene.plain[1], torch.as_tensor(scene.sequences.ids, device=scene.device)

    def theirs(_: Any) -> None:
        with torch.no_grad():
            places.body(model)(ids, use_cache=False)

    def agree(*_: Any) -> Agreement:
        return Agreement(ONE_PASS, 0.0)

    def ours(_: Any) -> None:
        unchanged(scene.inputs.post, scene.inputs.encoded)

    padded = "a forward pass of Hugging Face, padded"
    return [Peer(PASS, ours, agree), Peer(padded, theirs, agree)]


def screen(scene: Scene) -> Question:
    """The strongest heads: all estimated, the first of them patched exactly."""
    keep = scene.shape.heads if scene.quick else KEEP
    kept = screened(measures.attribution(scene.inputs, site="z"), keep)  # for recall and the bound

    def ours() -> dict[str, Any]:
        estimate = measures.attribution(scene.inputs, site="z")
        few = screened(estimate, keep)
        exact = measures.patching(scene.inputs, site="z", heads=few)
        return {"estimate": effects(estimate, scene, "z"), "exact": effects(exact, scene, "z")}

    def agree(ours: dict[str, Any], theirs: np.ndarray, layers: Sequence[int]) -> Agreement:
        """Of the estimate by rank; what was patched exactly has to be the same number."""
        layers = list(layers)
        mine, estimate = ours["exact"][:, :, layers], ours["estimate"][:, :, layers]
        notes = []
        if np.isfinite(mine).any():
            notes.append(f"kept heads differ by {difference(mine, theirs).value:.0e} nats at most")
        if len(layers) == scene.shape.layers:
            notes.append(_recall(theirs[0].mean(-1), kept))
        pairs = zip(estimate[0].mean(-1), theirs[0].mean(-1), strict=True)
        ranks: list[Any] = [spearmanr(a.ravel(), b.ravel())[0] for a, b in pairs]
        return Agreement("rank correlation", float(min(ranks)), note="; ".join(notes))

    slow = lens(scene, "z", scene.shape.heads)
    exact = Peer(
        "mechforget, every head exactly",
        lambda _: effects(measures.patching(scene.inputs, site="z"), scene, "z"),
        lambda a, b, _: agree(a, b, range(scene.shape.layers)),
    )
    flops = bound.screen(scene.shape, scene.tree, _attribution_flops(scene), kept)
    loop = Peer(slow.name, slow.run, agree, slow.prepare, slow.costs)
    return Question(ours, [loop, exact], flops, weights_once(scene))


def _recall(effect: np.ndarray, kept: list[tuple[int, int]]) -> str:
    """effect [direction, layer, head]: of log_prob, the mean over prompts."""
    said = []
    for name, values in zip(("restore", "break"), effect, strict=True):
        order = np.argsort(-abs(values).ravel())[:TOP]
        best = [divmod(int(i), values.shape[1]) for i in order]
        said.append(f"{sum(head in kept for head in best)} in {name}")
    return f"of the {len(best)} strongest heads it keeps {' and '.join(said)}"
