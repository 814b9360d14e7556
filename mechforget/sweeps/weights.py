"""Whole modules taken from the other checkpoint, for the time of one forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

from mechforget.models.protocol import Model


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
