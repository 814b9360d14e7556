"""Weights of another checkpoint, or on the way to it, for the time of some forward passes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mechforget.models.protocol import Model

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


@contextmanager
def _given_back(parameters: "Iterable[Parameter]") -> Iterator[None]:
    """Afterwards these have the data that they had, untouched: set `data`, don't write into it."""
    own = [(p, p.data) for p in parameters]
    try:
        yield
    finally:
        for p, data in own:
            p.data = data


@contextmanager
def borrowed(model: Model, donor: Model, parts: list[tuple[str, int | None]]) -> Iterator[None]:
    """Inside, these (part, layer) of `model` hold the donor's weights; nothing is copied that is
    on the same device."""
    pairs = [
        (mine, theirs)
        for part in parts
        for mine, theirs in zip(model.parameters(*part), donor.parameters(*part), strict=True)
    ]
    with _given_back(mine for mine, _ in pairs):
        for mine, theirs in pairs:
            mine.data = theirs.data.to(mine.device)
        yield


@contextmanager
def between(model: Model, other: Model, t: float) -> Iterator[None]:
    """Inside, `model` holds (1 - t) θ_model + t θ_other: t = 0 is bit for bit itself, 1 the other.
    Only parameters that differ are made anew; afterwards it has its own back, untouched."""
    import torch

    pairs = list(zip(model.module.parameters(), other.module.parameters(), strict=True))
    with _given_back(mine for mine, _ in pairs):
        for mine, theirs in pairs:
            if t == 0 or torch.equal(mine.data, end := theirs.data.to(mine.device)):
                continue
            mine.data = end if t == 1 else torch.lerp(mine.data, end.to(mine), t)
        yield


@contextmanager
def moved(model: Model, steps: "Iterable[Tensor | None]") -> Iterator[None]:
    """Inside, each of `model.module.parameters()` has its step added (None: it has none), which may
    be made when it is its turn; afterwards the model has its own weights back, untouched."""
    held = list(model.module.parameters())
    with _given_back(held):
        for p, step in zip(held, steps, strict=True):
            if step is not None:
                p.data = p.data + step
        yield
