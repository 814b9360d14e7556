"""How a metric answers, to first order, to what a model computes and to its weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from mechforget.errors import MechforgetError, SweepError
from mechforget.models.beside import beside_the_model, elsewhere
from mechforget.models.protocol import Model, Point, Rewrite
from mechforget.models.sites import ACTIVATIONS
from mechforget.sweeps.donor import tokens

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from mechforget.tasks.encoded import Encoded

Part = tuple[str, int | None]  # as `Model.parameters` is asked for them


@dataclass(frozen=True)
class Gradients:
    """Of a metric summed over prompts. Rows don't mix, so a row's part of an activation's gradient
    is that of its own prompt's metric."""

    log_prob: np.ndarray  # of each read's target, nats: [read]
    activations: "Mapping[Point, Tensor]"  # shaped like the activation
    weights: "Mapping[Part, Sequence[Tensor]]"  # shaped like `Model.parameters`


@beside_the_model
def gradients(
    model: Model,
    encoded: "Encoded",
    points: Sequence[Point] = (),
    parts: Sequence[Part] = (),
    *,
    metric: str = "log_prob",
    put: "Mapping[Point, Tensor]" = MappingProxyType({}),
) -> Gradients:
    """∂m/∂activation and ∂m/∂weight from one forward and one backward pass, nats per unit.

    m: `log_prob`, Σ log p of the right answers' tokens, or `logit_diff`, that minus the wrong ones'
    of the prompts that have one. Of head_out: the gradient at attn_raw, the same for all heads.
    put: values for some of the points, in whose place, and at which, the metric is differentiated.
    Raises: SweepError: a point that is no proven site; weights on the disk, which have none.
    Source: the chain rule. Blind to anything that isn't small: a saturated softmax has none.
    """
    import torch

    reads = counted(encoded, metric)
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
    rewrites[model.spec.layers, "unembed"] = lambda t: t[read][None]  # no more is unembedded
    with torch.enable_grad(), requiring(model, held):
        logits = model.run(tokens(encoded, model), rewrites)[0]
        target, weight = (
            torch.as_tensor(x, device=logits.device) for x in (encoded.read_target, reads)
        )
        log_prob = logits.float().log_softmax(-1)[range(len(target)), target]
        found = torch.autograd.grad(
            (log_prob * weight).sum(), [*kept.values(), *held], allow_unused=True
        )
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
    )


def require_gradients(model: Model, encoded: "Encoded") -> None:
    """Before anything is measured: whether this model can be differentiated where it is.

    Raises: SweepError: it can't, and what to do.
    """
    if not elsewhere(model):
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
    """[read]: what each log p counts for."""
    if metric == "log_prob":
        return np.where(encoded.read_wrong, 0.0, 1.0)
    if metric == "logit_diff":
        counts = encoded.has_wrong[encoded.read_prompt]
        return np.where(encoded.read_wrong, -1.0, 1.0) * counts
    raise SweepError(f"metric {metric!r} has no gradient: want log_prob or logit_diff")


@contextmanager
def requiring(model: Model, held: "Sequence[Parameter]") -> Iterator[None]:
    """Inside, these parameters alone are differentiated: no graph is kept for the others."""
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
