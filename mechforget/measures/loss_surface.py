"""The loss landscape, by moving the weights: around each checkpoint, and from one to the other.

L is the mean over prompts of −Σ log p of the right answer's tokens, nats, of the task that is
given: the old one, or the new one. The weights are moved in place, and come back untouched.
"""

from collections.abc import Iterable, Iterator
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget import progress
from mechforget.checkpoints.families import keeps_in_out
from mechforget.errors import MeasureError
from mechforget.measures.explained import described
from mechforget.measures.forgetting import AT, unchanged
from mechforget.measures.inputs import Inputs, measure
from mechforget.measures.landscape import BOUNDS, standard_error
from mechforget.models.beside import is_served
from mechforget.models.cells import address
from mechforget.models.protocol import Model
from mechforget.statistics import bounds
from mechforget.sweeps.chunks import batches, max_tokens
from mechforget.sweeps.curvature import require_curvature
from mechforget.sweeps.gradients import PartOfLayer, gradients
from mechforget.sweeps.weights import between, moved
from mechforget.tasks.encoded import grouped, packed

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor
    from torch.nn import Parameter

    from mechforget.tasks import Encoded

LINE = tuple(i / 10 for i in range(11))
GRID = (-0.5, 0.0, 0.5, 1.0, 1.5)


@measure
def sharpness(
    inputs: Inputs, *, directions: int = 20, radius: float = 0.01, seed: int = 0
) -> "xr.Dataset":
    """Mean rise of L when the weights take a small step in a random direction.

    A direction is Gaussian, each filter (the weights into one output neuron; of stacked experts
    each expert's matrix) scaled to `radius` times the norm of the filter that it is added to; norms
    and biases stay. The same draws at pre and at post.
    Returns: `rise` (at, direction, prompt), nats; `sharpness`, `sharpness_se` (at): its mean, and
        the standard error over directions.
    Raises: MeasureError: weights that aren't in memory here.
    Source: Li et al. 2018, 1712.09913 (filter normalisation). Blind to narrow valleys: in so many
        dimensions a random direction hardly meets the sharpest one.
    Examples:
        >>> found = sharpness(same, directions=2).sharpness
        >>> bool(np.isclose(*found))  # one model, the same steps
        True
    """
    import torch
    import xarray as xr

    rise = []
    with progress.bar("sharpness", 2 * directions, unit="directions") as advance:
        for model in _held(inputs):
            generator = torch.Generator().manual_seed(seed)
            base, each = losses(inputs, model), []
            for _ in range(directions):
                with moved(model, filter_normalised(model, radius, generator)):
                    each.append(losses(inputs, model) - base)
                advance(1)
            rise.append(each)
    found = np.stack(rise)
    mean = found.mean(-1)
    result = xr.Dataset(
        {
            "rise": (("at", "direction", "prompt"), found),
            "sharpness": ("at", mean.mean(-1)),
            "sharpness_se": ("at", standard_error(mean)),
        },
        coords={"at": list(AT), "cluster": ("prompt", inputs.encoded.cluster)},
        attrs={"radius": radius, "seed": seed},
    )
    return described(
        result,
        "1712.09913",
        rise=("nats", "rise of the loss after a random step of the weights"),
        sharpness=("nats", "mean rise of the loss"),
        sharpness_se=("nats", "standard error of the mean rise"),
    )


def filter_normalised(model: Model, radius: float, generator: Any) -> "Iterator[Tensor | None]":
    """One random step for each of the model's parameters, None for norms and biases."""
    import torch

    # GPT-2's matrices are [in, out]: a neuron's weights are a column.
    columns = {id(m.weight) for m in model.module.modules() if keeps_in_out(m)}
    for p in model.module.parameters():
        if p.ndim < 2:
            yield None
            continue
        step = torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
        along = (-2, -1) if p.ndim > 2 else (0,) if id(p) in columns else (1,)
        size = step.norm(dim=along, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
        yield step.mul_(radius * p.detach().norm(dim=along, keepdim=True) / size)


@measure
def loss_line(inputs: Inputs, *, points: Iterable[float] = LINE, seed: int = 0) -> "xr.Dataset":
    """L along the straight line from pre's weights to post's.

    Returns: `loss` (t, prompt), nats, t = 0 at pre and 1 at post; `barrier` (bound), nats:
        max_t [L(t) − ((1 − t) L(0) + t L(1))], at least 0, with its 95 % bootstrap over clusters,
        the maximum retaken in each; `barrier_at`: that t.
    Raises: MeasureError: points without 0 and 1, or weights that aren't in memory here.
    Source: linear mode connectivity, Frankle et al. 2020, 1912.05671; above the weighted mean of
        the ends as in Entezari et al. 2022, 2110.06296 (Frankle's plain mean would call a mere
        difference of the ends a barrier). A bootstrapped maximum leans upwards. Blind to paths that
        aren't straight, and between the points.
    Examples:
        >>> found = loss_line(same, points=(0, 0.5, 1))
        >>> found.barrier.sel(bound="estimate").item()  # all three points are one model
        0.0
    """
    import xarray as xr

    t = np.unique(np.asarray(list(points), float))
    if t.size < 2 or t[0] != 0 or t[-1] != 1:
        raise MeasureError(
            f"points {t.tolist()}: want numbers from 0 to 1, with 0 and 1 among them"
        )
    pre, post = _held(inputs)
    found = np.empty((len(t), inputs.encoded.n_prompts))
    with progress.bar("line from pre to post", len(t), unit="points") as advance:
        for i, at in enumerate(t):
            with between(pre, post, float(at)):
                found[i] = losses(inputs, pre)
            advance(1)
    cluster = np.unique(inputs.encoded.cluster, return_inverse=True)[1]
    members = [np.flatnonzero(cluster == c) for c in range(cluster.max() + 1)]
    total = np.stack([found[:, m].sum(1) for m in members])  # [cluster, t]
    count = np.array([len(m) for m in members])

    def highest(drawn: np.ndarray) -> np.ndarray:
        return barrier(total[drawn].sum(-2) / count[drawn].sum(-1)[..., None], t)

    excess = _excess(found.mean(1), t)
    result = xr.Dataset(
        {
            "loss": (("t", "prompt"), found),
            "barrier": ("bound", bounds(highest, [len(members)], seed=seed)),
            "barrier_at": ((), t[excess.argmax()]),
        },
        coords={
            "t": t,
            "bound": list(BOUNDS),
            "cluster": ("prompt", inputs.encoded.cluster),
        },
        attrs={"seed": seed},
    )
    return described(
        result,
        "1912.05671, 2110.06296",
        loss=("nats", "loss on the line from pre to post"),
        barrier=("nats", "highest loss above the weighted mean of the ends"),
        barrier_at=("1", "point of the barrier on the line"),
        t=("1", "point on the line from pre (0) to post (1)"),
    )


def barrier(loss: np.ndarray, t: np.ndarray) -> np.ndarray:
    """max_t [L(t) − ((1 − t) L(0) + t L(1))] of losses [..., t]."""
    return _excess(loss, t).max(-1)


def _excess(loss: np.ndarray, t: np.ndarray) -> np.ndarray:
    return loss - ((1 - t) * loss[..., :1] + t * loss[..., -1:])


@measure
def loss_plane(
    inputs: Inputs,
    *,
    third: Model | None = None,
    new: "Encoded | None" = None,
    grid: Iterable[float] = GRID,
) -> "xr.Dataset":
    """L on a plane through pre and post: θ = pre + a (post − pre) + b d.

    Args: third: a model, whose d = third − pre; or new: the new task's tokens, whose d = −∇L_new at
        pre, scaled to the length of post − pre.
    Returns: `loss` (a, b, prompt), nats; attributes `spanned_by`, and `cosine` of the directions:
        the plane isn't drawn at right angles.
    Raises: MeasureError: both or neither are given, or weights that aren't in memory here.
    Source: Garipov et al. 2018, 1802.10026. Blind to all other directions. Holds one more copy of
        the weights, for d.
    Examples:
        >>> plane = loss_plane(planted, new=planted.encoded, grid=(0, 1)).loss.sel(b=0)
        >>> line = loss_line(planted, points=(0, 1)).loss
        >>> bool(abs(plane.values - line.values).max() < 1e-3)  # b = 0 is the line from pre to post
        True
    """
    import xarray as xr

    if (third is None) == (new is None):
        raise MeasureError("the plane's second direction: want third (a model) or new (a task)")
    pre, post = _held(inputs)
    run = _run(pre)
    start, end = ([p.data for p in m.module.parameters()] for m in (pre, post))

    def dot(x: "Iterable[Tensor]", y: "Iterable[Tensor]") -> float:
        return _dot(compress(x, run), compress(y, run))

    if third is not None:
        _resident(third)
        to = third.module.parameters()
        second, name = [q.data - p for q, p in zip(to, start, strict=True)], "third − pre"
    else:
        assert new is not None
        second, name = _downhill(pre, new), "−∇L of the new task at pre, as long as post − pre"
        size = (dot(_changes(start, end), _changes(start, end)) / dot(second, second)) ** 0.5
        second = [d * size for d in second]
    cosine = dot(_changes(start, end), second) / max(
        (dot(_changes(start, end), _changes(start, end)) * dot(second, second)) ** 0.5, 1e-300
    )
    axis = np.unique(np.asarray(list(grid), float))
    found = np.empty((len(axis), len(axis), inputs.encoded.n_prompts))
    with progress.bar("plane", found[..., 0].size, unit="points") as advance:
        for i, a in enumerate(axis.tolist()):
            for j, b in enumerate(axis.tolist()):
                pairs = zip(_changes(start, end), second, strict=True)
                with moved(pre, (a * change + b * d for change, d in pairs)):
                    found[i, j] = losses(inputs, pre)
                advance(1)
    result = xr.Dataset(
        {"loss": (("a", "b", "prompt"), found)},
        coords={"a": axis, "b": axis, "cluster": ("prompt", inputs.encoded.cluster)},
        attrs={"spanned_by": f"a: post − pre; b: {name}", "cosine": cosine},
    )
    return described(
        result,
        "1802.10026",
        loss=("nats", "loss on a plane through pre and post"),
        a=("1", "step along post − pre"),
        b=("1", "step along the second direction"),
    )


def losses(inputs: Inputs, model: Model) -> np.ndarray:
    """−log_prob of each prompt, nats, as the model's weights are now."""
    encoded, spec = inputs.encoded, model.spec
    groups = grouped(encoded, **spec.packing)
    found = np.empty(encoded.n_prompts)
    for batch in batches(groups, max_tokens(spec, inputs.memory, groups[-1].width)):
        (part,), prompts = packed(encoded, groups=batch)
        found[prompts] = -unchanged(model, part)["log_prob"]
    return found


def _changes(start: "list[Tensor]", end: "list[Tensor]") -> "Iterator[Tensor]":
    """end − start, one tensor at a time."""
    return (q - p for q, p in zip(end, start, strict=True))


def _run(model: Model) -> list[bool]:
    """Which of `model.module.parameters()` are run: not a fused matrix where its parts, in the same
    memory, are parameters too (TransformerLens cuts it so)."""
    every = list(model.module.parameters())
    least: dict[int, Parameter] = {}
    for p in every:
        other = least.setdefault(address(p), p)
        least[address(p)] = min(p, other, key=lambda one: one.numel())
    return [least[address(p)] is p for p in every]


def _dot(x: "Iterable[Tensor]", y: "Iterable[Tensor]") -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(x, y, strict=True))


def _downhill(model: Model, encoded: "Encoded") -> "list[Tensor]":
    """−∇L of a task, in the order of `model.module.parameters()`."""
    parts: list[PartOfLayer] = [("attention", None), ("mlp", None), ("rest", None)]
    found = gradients(model, encoded, parts=parts).weights
    slope = {
        id(p): g
        for part in parts
        for p, g in zip(model.parameters(*part), found[part], strict=True)
    }
    return [slope[id(p)].to(p) / encoded.n_prompts for p in model.module.parameters()]


def _held(inputs: Inputs) -> tuple[Model, Model]:
    for model in (inputs.pre, inputs.post):
        _resident(model)
    return inputs.pre, inputs.post


def _resident(model: Model) -> None:
    """Raises: MeasureError: its weights can't be moved here. SweepError: half precision."""
    if not model.spec.resident:
        where = "on a server" if is_served(model) else "on the disk"
        raise MeasureError(
            f"weights {where} can't be moved: run on a device that holds them (--device cpu or "
            "cuda), or leave the line and the sharpness out"
        )
    require_curvature(model)
