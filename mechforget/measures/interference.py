"""Gradient interference: where learning the new task pushes against the old one."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.errors import MeasureError
from mechforget.measures.explained import described
from mechforget.measures.inputs import Inputs, measure
from mechforget.models.beside import elsewhere
from mechforget.sweeps.gram import gram
from mechforget.sweeps.weights import between

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.tasks import Encoded, Task

MINIBATCHES, LEAST = 8, 4
DRAWS, ENDS = 1000, (0.025, 0.975)
OLD, NEW = "old", "new"
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
    """Products of the old task's gradients with the new task's, of every head, matrix and expert.

    Each task's clusters are dealt into disjoint minibatches; a minibatch's gradient is that of its
    mean log_prob. The loss's is the negative, so products are those of losses too. Under a step of
    the new task -η g_new, the old loss changes by -η g_old · g_new: a negative product is harm.
    Args: new: the new task (encoded by this model's tokenizer). at: points on the straight line,
        0 = pre, 1 = post.
    Returns: `gram` (at, cell, minibatch, other): dot products, nats² per unit of weight²; `task`
        (minibatch): old, new; `part`, `layer`, `unit` (cell): see `models.cells`; -1 where none.
        `whole` (at, prompt, other_prompt): of all weights, of prompts: `whose`, `prompt_cluster`.
        `summary` makes the dot product, cosines and conflict rates of it, with intervals.
    Raises: MeasureError: fewer than 4 clusters in a task; a point other than 0 or 1 of a server;
        an overflow.
    Source: Lopez-Paz & Ranzato 2017 (gradient episodic memory); Yu et al. 2020, 2001.06782
        (conflicting gradients). Blind to curvature: what many steps do isn't what one does.
    """
    import xarray as xr

    from mechforget.tasks import Encoded

    if not isinstance(new, Encoded):
        raise MeasureError("interference: new must be encoded where the models are open already")
    groups = [dealt(e.cluster, minibatches, seed) for e in (inputs.encoded, new)]
    if lack := lacks_for_minibatches(inputs.encoded, new):
        raise MeasureError(f"interference: {lack}")
    if elsewhere(inputs.pre) and any(0 < t < 1 for t in at):
        raise MeasureError("points on the line need both checkpoints' weights here: want at 0 or 1")
    both = inputs.encoded.join(new)
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


def quantities(gram: np.ndarray, old: np.ndarray, new: np.ndarray) -> dict[str, np.ndarray]:
    """The estimates from gram [..., minibatch, other], for chosen minibatches (a resample's may
    repeat: a minibatch is never compared with itself).

    dot: mean g_old · g_new. cosine: of the mean gradients. corrected: dot over the square root of
    the product of the two tasks' own off-diagonal means, so free of minibatches' noise; NaN where
    one of those isn't positive. conflict: share of pairs with a negative product. reliability:
    1 - the same share among the old task's own minibatches.
    """
    times = (np.bincount(which, minlength=gram.shape[-1])[None] for which in (old, new))
    return {name: value[0] for name, value in _weighed(gram, *times).items()}


def _weighed(gram: np.ndarray, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """`quantities` [draw, ...] of minibatches that count a and b [draw, minibatch] times; below 0:
    its gradient has changed sign. All are sums of the Gram's entries, so one product each."""
    size = gram.shape[-1]
    flat = np.asarray(gram, np.float64).reshape(-1, size * size).T
    apart = ~np.eye(size, dtype=bool)
    n_a, n_b = (abs(x).sum(1, keepdims=True) for x in (a, b))
    own_a, own_b = (n**2 - (x**2).sum(1, keepdims=True) for n, x in ((n_a, a), (n_b, b)))

    def total(x: np.ndarray, y: np.ndarray, of: np.ndarray, among: Any = True) -> np.ndarray:
        pairs = np.where(among, x[:, :, None] * y[:, None], 0.0)
        return pairs.reshape(len(x), -1) @ of.astype(np.float64)

    dot = total(a, b, flat) / (n_a * n_b)
    fights = total(a, np.maximum(b, 0), flat < 0) + total(a, np.maximum(-b, 0), flat > 0)
    old = total(a, a, flat, apart) / np.maximum(1, own_a)
    new = total(b, b, flat, apart) / np.maximum(1, own_b)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = total(a, a, flat) / n_a**2 * (total(b, b, flat) / n_b**2)
        found = {
            "dot": dot,
            "cosine": dot / np.sqrt(lengths),
            "corrected": dot / np.sqrt(np.where((old > 0) & (new > 0), old * new, np.nan)),
            "conflict": np.where(total(a, abs(b), flat != 0) == 0, np.nan, fights / (n_a * n_b)),
            "reliability": total(a, a, flat >= 0, apart) / np.maximum(1, own_a),
        }
    return {name: value.reshape(len(a), *gram.shape[:-2]) for name, value in found.items()}


def summary(
    gram: np.ndarray, task: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """name -> (estimate, low, high): 95 % percentile bootstrap over minibatches of both tasks; and
    `null_cosine`, `null_conflict`: the mean and the central 95 % when whole minibatches of the new
    task change sign at random, as unrelated gradients would, and `p` (two-sided, of the dot)."""
    rng = np.random.default_rng(seed)
    both = tuple(np.flatnonzero(task == name) for name in (OLD, NEW))
    estimate = quantities(gram, *both)
    again, signed = np.zeros((2, 2, draws, len(task)))  # [old or new, draw, minibatch]
    for i, which in enumerate(both):
        again[i][:, which] = rng.multinomial(len(which), np.full(len(which), 1 / len(which)), draws)
        signed[i][:, which] = 1
    signed[1] *= rng.choice([-1.0, 1.0], (draws, len(task)))
    drawn, flipped = _weighed(gram, *again), _weighed(gram, *signed)
    found = {}
    for name, value in estimate.items():
        ends = _central(drawn[name])
        found[name] = (value, *(np.where(np.isnan(value), np.nan, end) for end in ends))
    for name in ("cosine", "conflict"):
        some = np.isfinite(flipped[name]).any(0)
        mean = np.full(some.shape, np.nan)
        mean[some] = np.nanmean(flipped[name][:, some], 0)
        found[f"null_{name}"] = (mean, *_central(flipped[name]))
    # the same sums in another order
    slack = 1e-12 * abs(gram[..., both[0][:, None], both[1]]).mean((-2, -1))
    beyond = (abs(flipped["dot"]) >= abs(estimate["dot"]) - slack).sum(0)
    p = (beyond + 1) / (draws + 1)
    found["p"] = (p, p, p)
    return found


def _central(drawn: np.ndarray) -> np.ndarray:
    """The ends of the central 95 % of draws [draw, ...], NaN where none has a value."""
    flat = drawn.reshape(len(drawn), -1)
    there, ends = np.isfinite(flat), np.full((2, flat.shape[1]), np.nan)
    whole = there.all(0)
    ends[:, whole] = np.quantile(flat[:, whole], ENDS, axis=0)
    for i in np.flatnonzero(there.any(0) & ~whole):
        ends[:, i] = np.quantile(flat[there[:, i], i], ENDS)
    return ends.reshape(2, *drawn.shape[1:])
