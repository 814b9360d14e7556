"""Weights of another checkpoint, or on the way to it, for the time of some forward passes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mechforget.models.protocol import Model

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def borrowed(model: Model, donor: Model, parts: list[tuple[str, int | None]]) -> Iterator[None]:
    """Inside, these (part, layer) of `model` hold the donor's weights; nothing is copied."""
    pairs = [
        (mine, theirs)
        for part in parts
        for mine, theirs in zip(model.parameters(*part), donor.parameters(*part), strict=True)
    ]
    own = [mine.data for mine, _ in pairs]
    for mine, theirs in pairs:
        mine.data = theirs.data
    try:
        yield
    finally:
        for (mine, _), data in zip(pairs, own, strict=True):
            mine.data = data


@contextmanager
def between(model: Model, other: Model, t: float) -> Iterator[None]:
    """Inside, `model` holds (1 - t) θ_model + t θ_other: t = 0 is bit for bit itself, 1 the other.
    Only parameters that differ are made anew; afterwards it has its own back, untouched."""
    import torch

    pairs = list(zip(model.module.parameters(), other.module.parameters(), strict=True))
    own = [mine.data for mine, _ in pairs]
    try:
        for mine, theirs in pairs:
            if t == 0 or torch.equal(mine.data, theirs.data):
                continue
            mine.data = theirs.data if t == 1 else torch.lerp(mine.data, theirs.data.to(mine), t)
        yield
    finally:
        for (mine, _), data in zip(pairs, own, strict=True):
            mine.data = data


@contextmanager
def moved(model: Model, steps: "Iterable[Tensor | None]") -> Iterator[None]:
    """Inside, each of `model.module.parameters()` has its step added (None: it has none), which may
    be made when it is its turn; afterwards the model has its own weights back, untouched."""
    held = list(model.module.parameters())
    own = [p.data for p in held]
    try:
        for p, step in zip(held, steps, strict=True):
            if step is not None:
                p.data = p.data + step
        yield
    finally:
        for p, data in zip(held, own, strict=True):
            p.data = data
