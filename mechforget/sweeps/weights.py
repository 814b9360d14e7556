"""A model whose weights are replaced for some forward passes and then restored: by another
checkpoint's, by a mixture of both, or by a step away from its own."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mechforget.models.protocol import Model

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


@contextmanager
def _given_back(parameters: "Iterable[Parameter]") -> Iterator[None]:
    """Restores the parameters' data afterwards. Inside, replace `data`, but don't write into it."""
    own = [(p, p.data) for p in parameters]
    try:
        yield
    finally:
        for p, data in own:
            p.data = data


@contextmanager
def borrowed(model: Model, donor: Model, parts: list[tuple[str, int | None]]) -> Iterator[None]:
    """Inside, these (part, layer) of `model` hold the donor's weights. Weights on the same device
    are shared, not copied."""
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
    """Inside, `model` holds (1 - t) θ_model + t θ_other. t = 0 gives its own weights and t = 1 the
    other's, bit for bit. Parameters that are equal in both are left alone."""
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
    """Inside, each of `model.module.parameters()` has its step added (None: no step). Steps are
    taken from the iterable one at a time, so it may be a generator that makes them."""
    held = list(model.module.parameters())
    with _given_back(held):
        for p, step in zip(held, steps, strict=True):
            if step is not None:
                p.data = p.data + step
        yield
