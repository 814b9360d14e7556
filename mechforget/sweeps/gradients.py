"""Gradients of a metric with respect to a model's activations and its weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from mechforget.errors import MechforgetError, SweepError
from mechforget.models.beside import beside_the_model, is_served
from mechforget.models.protocol import Model, Point, Rewrite
from mechforget.models.sites import ACTIVATIONS
from mechforget.sweeps.donor import forward
from mechforget.sweeps.metric import Metric, Reads

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from mechforget.tasks.encoded import Encoded

PartOfLayer = tuple[str, int | None]  # as `Model.parameters` is asked for them


@dataclass(frozen=True)
class Gradients:
    """Gradients of a metric summed over prompts. Rows don't affect each other, so a row of an
    activation's gradient is the gradient of its own prompt's metric; where prompts share a row, it
    is the gradient of their sum."""

    log_prob: np.ndarray  # [read], of each read's target, nats
    activations: "Mapping[Point, Tensor]"  # shaped like the activation
    weights: "Mapping[PartOfLayer, Sequence[Tensor]]"  # shaped like `Model.parameters`
    own: np.ndarray | None = None  # a metric of one's own, where it is that: [prompt]


def gradients(
    model: Model,
    encoded: "Encoded",
    points: Sequence[Point] = (),
    parts: Sequence[PartOfLayer] = (),
    *,
    metric: str | Metric = "log_prob",
    put: "Mapping[Point, Tensor]" = MappingProxyType({}),
) -> Gradients:
    """`several_gradients` of one metric."""
    return several_gradients(model, encoded, [metric], points, parts, put=dict(put))[0][0]


@beside_the_model
def several_gradients(
    model: Model,
    encoded: "Encoded",
    metrics: Sequence[str | Metric],
    points: Sequence[Point] = (),
    parts: Sequence[PartOfLayer] = (),
    *,
    put: "Mapping[Point, Tensor]" = MappingProxyType({}),
    seen: Sequence[Point] = (),
) -> "tuple[list[Gradients], dict[Point, Tensor]]":
    """∂m/∂activation and ∂m/∂weight of each metric, nats per unit, and the activations at `seen`,
    from one forward pass and one backward pass, and another one for a metric of one's own.

    Args: metrics: `log_prob`, Σ log p of the right answers' tokens, or `logit_diff`, which
        subtracts that of the wrong answers' tokens, for prompts that have a wrong answer; or a
        metric of one's own, whose NaN are left out of the sum. put: values that
        replace the activation at some of the points; the gradient is taken there.
    The gradient for head_out is the one at attn_raw, which is the same for all heads.
    Raises: SweepError: a point isn't a site that the model proved, the weights are on the disk,
        or the metric has no gradient.
    Source: the chain rule. Blind to large changes: a saturated softmax has almost no gradient.
    """
    import torch

    built_in = [m for m in metrics if isinstance(m, str)]
    counts = {name: counted(encoded, name) for name in built_in}
    for _, name in points:
        if name in ACTIVATIONS:
            model.spec.require(name)
    kept: dict[Point, Tensor] = {}
    wanted = {part: model.parameters(*part) for part in parts}
    held = [p for found in wanted.values() for p in found]
    if held and not model.spec.resident:
        raise SweepError(
            "weights on the disk have no gradients: use a device that holds them, or leave "
            "gradients of weights out"
        )

    activations: dict[Point, Tensor] = {}

    def keep(point: Point) -> Rewrite:
        def leaf(t: "Tensor") -> "Tensor | None":
            if point in seen:
                activations[point] = t.detach().clone()
            if point not in wanted_points:
                return None
            t = put[point].to(t) if point in put else t
            t = t.clone() if t.requires_grad else t.detach().clone().requires_grad_()
            kept[point] = t
            return t

        return leaf

    wanted_points = set(points)
    rewrites: dict[Point, Callable[[Tensor], Tensor | None]] = {
        p: keep(p) for p in (*points, *seen)
    }
    read = encoded.read_at
    rewrites[model.spec.layers, "unembed"] = lambda t: t[read][None]  # only what is read
    with torch.enable_grad(), requiring(model, held):
        logits = forward(model, encoded, rewrites)[0]
        target = torch.as_tensor(encoded.read_target, device=logits.device)
        log_prob = logits.float().log_softmax(-1)[range(len(target)), target]
        of, own = [*kept.values(), *held], [m for m in metrics if isinstance(m, Metric)]
        found: dict[str | Metric, Gradients] = {}
        weights = [torch.as_tensor(counts[m], device=logits.device) for m in built_in]
        if built_in:  # both are sums of what is read: one pass back takes them side by side
            along = torch.stack(weights).to(log_prob)
            grads = torch.autograd.grad(
                log_prob,
                of,
                along,
                is_grads_batched=True,
                retain_graph=bool(own),
                allow_unused=True,
            )
            for i, name in enumerate(built_in):
                mine = [None if g is None else g[i] for g in grads]
                found[name] = _collected(log_prob, None, kept, wanted, mine)
        for metric in own:
            values = _of_one_s_own(metric, logits, encoded)
            more = metric is not own[-1]
            grads = torch.autograd.grad(values.nansum(), of, retain_graph=more, allow_unused=True)
            found[metric] = _collected(log_prob, values, kept, wanted, grads)
    return [found[metric] for metric in metrics], activations


def _collected(
    log_prob: "Tensor",
    values: "Tensor | None",
    kept: "Mapping[Point, Tensor]",
    wanted: "Mapping[PartOfLayer, Sequence[Parameter]]",
    grads: "Sequence[Tensor | None]",
) -> Gradients:
    """grads: of the activations, then of the weights. Raises: SweepError: one has none."""
    import torch

    unseen = [str(point) for point, g in zip(kept, grads, strict=False) if g is None]
    if unseen:
        raise SweepError(f"{', '.join(unseen)}: nothing that is read depends on it")
    weights = iter(grads[len(kept) :])
    return Gradients(
        log_prob.detach().double().cpu().numpy(),
        {p: g.cpu() for p, g in zip(kept, grads, strict=False) if g is not None},
        {
            part: [torch.zeros_like(p) if (g := next(weights)) is None else g.cpu() for p in mine]
            for part, mine in wanted.items()
        },
        None if values is None else values.detach().cpu().double().numpy(),
    )


def _of_one_s_own(metric: Metric, logits: "Tensor", encoded: "Encoded") -> "Tensor":
    """[prompt], with a graph. Raises: SweepError: it has none."""
    reads = Reads.of(encoded, logits.device)
    values = metric.values(logits, reads)
    if not values.requires_grad:
        raise SweepError(
            f"metric {metric.name} has no gradient: it counts, compares or leaves torch; use "
            "patching, or leave it out"
        )
    metric.check_alone(logits, reads, values)
    return values


def require_gradients(model: Model, encoded: "Encoded") -> None:
    """Checks, before anything is measured, that this model gives gradients where it runs.

    Raises: SweepError: it doesn't; the message says what to do.
    """
    if not is_served(model):
        return
    one = encoded.subset(np.arange(1))
    try:
        several_gradients(model, one, ["log_prob"], [(model.spec.layers - 1, "resid_post")])
    except MechforgetError as error:
        raise SweepError(
            f"this server gives no gradients ({error}): start one with --trust trusted, run "
            "backend nnsight, or leave out the measures that need them"
        ) from error


def counted(encoded: "Encoded", metric: str) -> np.ndarray:
    """The weight of each log p in the metric, [read]: 1, -1 or 0."""
    if metric == "log_prob":
        return np.where(encoded.read_wrong, 0.0, 1.0)
    if metric == "logit_diff":
        counts = encoded.has_wrong[encoded.read_prompt]
        return np.where(encoded.read_wrong, -1.0, 1.0) * counts
    raise SweepError(f"metric {metric!r} has no gradient: want log_prob or logit_diff")


@contextmanager
def requiring(model: Model, held: "Sequence[Parameter]") -> Iterator[None]:
    """Inside, only these parameters require gradients, so no graph is kept for the others."""
    every = list(model.module.parameters())
    before = [p.requires_grad for p in every]
    try:
        for p in every:
            p.requires_grad_(False)
        for p in held:
            p.requires_grad_(True)
        yield
    finally:
        for p, required in zip(every, before, strict=True):
            p.requires_grad_(required)
