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
from mechforget.sweeps.donor import tokens
from mechforget.sweeps.metric import Metric, Reads

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from mechforget.tasks.encoded import Encoded

PartOfLayer = tuple[str, int | None]  # as `Model.parameters` is asked for them


@dataclass(frozen=True)
class Gradients:
    """Gradients of a metric summed over prompts. Rows don't affect each other, so a row of an
    activation's gradient is the gradient of its own prompt's metric."""

    log_prob: np.ndarray  # [read], of each read's target, nats
    activations: "Mapping[Point, Tensor]"  # shaped like the activation
    weights: "Mapping[PartOfLayer, Sequence[Tensor]]"  # shaped like `Model.parameters`
    own: np.ndarray | None = None  # a metric of one's own, where it is that: [prompt]


@beside_the_model
def gradients(
    model: Model,
    encoded: "Encoded",
    points: Sequence[Point] = (),
    parts: Sequence[PartOfLayer] = (),
    *,
    metric: str | Metric = "log_prob",
    put: "Mapping[Point, Tensor]" = MappingProxyType({}),
) -> Gradients:
    """∂m/∂activation and ∂m/∂weight from one forward and one backward pass, nats per unit.

    Args: metric: `log_prob`, Σ log p of the right answers' tokens, or `logit_diff`, which subtracts
        that of the wrong answers' tokens, for prompts that have a wrong answer; or a
        metric of one's own, whose NaN are left out of the sum. put: values that
        replace the activation at some of the points; the gradient is taken there.
    The gradient for head_out is the one at attn_raw, which is the same for all heads.
    Raises: SweepError: a point isn't a site that the model proved, the weights are on the disk,
        or the metric has no gradient.
    Source: the chain rule. Blind to large changes: a saturated softmax has almost no gradient.
    """
    import torch

    own = metric if isinstance(metric, Metric) else None
    reads = counted(encoded, "log_prob" if isinstance(metric, Metric) else metric)
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

    def keep(point: Point) -> Rewrite:
        def leaf(t: "Tensor") -> "Tensor":
            t = put[point].to(t) if point in put else t
            t = t.clone() if t.requires_grad else t.detach().clone().requires_grad_()
            kept[point] = t
            return t

        return leaf

    rewrites: dict[Point, Callable[[Tensor], Tensor | None]] = {p: keep(p) for p in points}
    read = encoded.read_row, encoded.read_position
    rewrites[model.spec.layers, "unembed"] = lambda t: t[read][None]  # only what is read
    with torch.enable_grad(), requiring(model, held):
        logits = model.run(tokens(encoded, model), rewrites)[0]
        target, weight = (
            torch.as_tensor(x, device=logits.device) for x in (encoded.read_target, reads)
        )
        log_prob = logits.float().log_softmax(-1)[range(len(target)), target]
        values = None if own is None else _of_one_s_own(own, logits, encoded)
        total = (log_prob * weight).sum() if values is None else values.nansum()
        found = torch.autograd.grad(total, [*kept.values(), *held], allow_unused=True)
    unseen = [str(point) for point, g in zip(kept, found, strict=False) if g is None]
    if unseen:
        raise SweepError(f"{', '.join(unseen)}: nothing that is read depends on it")
    activations, weights = found[: len(kept)], iter(found[len(kept) :])
    return Gradients(
        log_prob.detach().double().cpu().numpy(),
        {point: g.cpu() for point, g in zip(kept, activations, strict=True)},
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
        gradients(model, one, [(model.spec.layers - 1, "resid_post")])
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
