"""Trains certain heads only: every other weight stays the same, bit for bit."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from mechforget.models.sites import PARAMETER
from mechforget.training.places import heads, located, sharing, unit, users

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def only(model: Any, names: Sequence[str]) -> "Iterator[dict[str, Any]]":
    """Inside, only the slices of these heads (L1H0, L2H3.vo; biases too) are trainable.

    Elsewhere in the same tensors gradients are set to 0, so that they don't count for clipping.
    What an optimizer changes without a gradient (weight decay, momentum) is restored after a step.
    Yields: the ground truth, as for planted damage: `heads` [layer, head] whose weights are
        trained, and `tensors`: for each, how many entries are trainable.
    Raises: StudyError: there is no such head. ModelError, SweepError: the backend can't find it.
    """
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    masks, trained = _masks(model, names)
    named = dict(model.named_parameters())
    kept = {name: named[name].detach()[~mask].clone() for name, mask in masks.items()}

    def put_back(*_: Any) -> None:
        for name, mask in masks.items():
            weight = named[name].data  # Trainer may have moved it to another device
            weight[~mask.to(weight.device)] = kept[name].to(weight.device)

    model.requires_grad_(False)
    with ExitStack() as stack:
        stack.callback(register_optimizer_step_post_hook(put_back).remove)
        for name, mask in masks.items():
            weight = named[name].requires_grad_(True)
            hook = weight.register_hook(lambda g, mask=mask: torch.where(mask.to(g.device), g, 0))
            stack.callback(hook.remove)
        entries = {name: {"entries": int(mask.sum())} for name, mask in masks.items()}
        yield {"heads": trained, "tensors": entries}


def _masks(model: Any, names: Sequence[str]) -> "tuple[dict[str, Tensor], list[list[int]]]":
    """For each parameter a mask of the entries that are trained; and the heads that use them."""
    masks: dict[str, Tensor] = {}
    trained: set[tuple[int, int]] = set()
    opened = sharing(model)
    for place in heads(names):
        assert place.head is not None
        for matrix in place.matrices:
            opened.spec.require(PARAMETER[matrix])
            mine = unit(opened, place.head, matrix)
            trained |= {(place.layer, head) for head in users(opened, mine, matrix)}
            for view in opened.weight(place.layer, PARAMETER[matrix], mine):
                if view is not None:
                    name, mask = located(model, view)
                    masks[name] = masks[name] | mask if name in masks else mask
    return masks, [list(head) for head in sorted(trained)]
