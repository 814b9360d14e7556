"""Gradient interference: where learning the new task pushes against the old one."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.errors import MeasureError
from mechforget.measures.explained import described
from mechforget.measures.inputs import Inputs, measure
from mechforget.models.beside import is_served
from mechforget.statistics.minibatches import NEW, OLD
from mechforget.sweeps.gram import gram
from mechforget.sweeps.weights import between

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.tasks import Encoded, Task

MINIBATCHES, LEAST = 8, 4
DOT = "nats² per weight²"


@measure
def interference(
    inputs: Inputs,
    *,
    new: "Encoded | Task",
    at: tuple[float, ...] = (0.0,),
    minibatches: int = MINIBATCHES,
    seed: int = 0,
) -> "xr.Dataset":
    """Dot products of the old task's gradients with the new task's, by head, matrix and expert.

    Each task's clusters are dealt into disjoint minibatches; a minibatch's gradient is that of its
    mean log_prob. The gradient of the loss is its negative, so the products are the same. Under a
    step of the new task -η g_new, the old loss changes by -η g_old · g_new: a negative product is
    harm.
    Args: new: the new task (encoded by this model's tokenizer). at: points on the straight line,
        0 = pre, 1 = post.
    Returns: `gram` (at, cell, minibatch, other): dot products, nats² per unit of weight²; `task`
        (minibatch): old, new; `part`, `layer`, `unit` (cell): see `models.cells`; -1 where none.
        `whole` (at, prompt, other_prompt): of all weights, of prompts: `whose`, `prompt_cluster`.
        `statistics.minibatches.summary` makes the dot product, cosines and conflict rates of it,
        with intervals.
    Raises: MeasureError: fewer than 4 clusters in a task; a point other than 0 or 1 of a server;
        an overflow.
    Source: Lopez-Paz & Ranzato 2017 (gradient episodic memory); Yu et al. 2020, 2001.06782
        (conflicting gradients). Blind to curvature: what many steps do isn't what one does.
    Examples:
        >>> gram = interference(same, new=same.encoded, minibatches=4).gram.sum("cell").values[0]
        >>> old, new = gram[:4, :4], gram[:4, 4:]
        >>> bool(np.allclose(old, new))  # a task and itself have the same gradients
        True
    """
    import xarray as xr

    from mechforget.tasks import Encoded

    if not isinstance(new, Encoded):
        raise MeasureError(
            "interference: these inputs are open already, so `new` must be encoded: "
            "new.encode(tokenizer)"
        )
    groups = [dealt(e.cluster, minibatches, seed) for e in (inputs.encoded, new)]
    if lack := lacks_for_minibatches(inputs.encoded, new):
        raise MeasureError(f"interference: {lack}")
    if any(0 < t < 1 for t in at) and is_served(inputs.pre):
        raise MeasureError(
            "points between pre and post need the weights of both checkpoints on this machine: "
            "want at=0 or 1"
        )
    both = inputs.encoded.join(new).by_prompt(inputs.post.spec.nodes)
    weight = _means(groups)
    found, whole = [], []
    for t in at:
        if t in (0, 1):
            products = gram(inputs.pre if t == 0 else inputs.post, both)
        else:
            with between(inputs.pre, inputs.post, t):
                products = gram(inputs.pre, both)
        if not all(np.isfinite(p).all() for p in products.values()):
            raise MeasureError("gradients overflow: use float32")
        cells = sorted(products, key=_order)
        found.append(np.stack([weight @ products[c] @ weight.T for c in cells]))
        whole.append(sum(products.values()))
    sizes = [int(g.max()) + 1 for g in groups]
    result = xr.Dataset(
        {
            "gram": (("at", "cell", "minibatch", "other"), np.stack(found)),
            "whole": (("at", "prompt", "other_prompt"), np.stack(whole)),
        },
        coords={
            "at": list(at),
            "part": ("cell", [c[0] for c in cells]),
            "layer": ("cell", [-1 if c[1] is None else c[1] for c in cells]),
            "unit": ("cell", [-1 if c[2] is None else c[2] for c in cells]),
            "task": ("minibatch", [OLD] * sizes[0] + [NEW] * sizes[1]),
            "whose": ("prompt", [OLD] * inputs.encoded.n_prompts + [NEW] * new.n_prompts),
            "prompt_cluster": ("prompt", both.cluster),
        },
        attrs={"seed": seed},
    )
    return described(
        result,
        "2001.06782",
        gram=(DOT, "dot products of minibatches' gradients of log_prob, by cell of the weights"),
        whole=(DOT, "dot products of prompts' gradients of log_prob, over all weights"),
        at=("1", "point on the line from pre (0) to post (1)"),
    )


def _order(cell: tuple[str, int | None, int | None]) -> tuple[Any, ...]:
    part, layer, unit = cell
    return (-1 if layer is None else layer, part, -1 if unit is None else unit)


def lacks_for_minibatches(old: "Encoded", new: "Encoded") -> str:
    """What the tasks lack for minibatches, in a line; nothing if they lack nothing."""
    for name, encoded in ((OLD, old), (NEW, new)):
        if (n := len(np.unique(encoded.cluster))) < LEAST:
            return f"the {name} task has {n} distinct prompts, want at least {LEAST}"
    return ""


def dealt(cluster: np.ndarray, minibatches: int, seed: int) -> np.ndarray:
    """[prompt]: its minibatch; prompts of a cluster stay together."""
    names, index = np.unique(cluster, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return (order % min(minibatches, len(names)))[index]


def _means(groups: list[np.ndarray]) -> np.ndarray:
    """[minibatch, prompt]: what makes minibatches' mean gradients of prompts' gradients."""
    blocks = []
    for group in groups:
        one = (np.arange(group.max() + 1)[:, None] == group).astype(float)
        blocks.append(one / one.sum(1, keepdims=True))
    a, b = blocks
    return np.block([[a, np.zeros((len(a), b.shape[1]))], [np.zeros((len(b), a.shape[1])), b]])
