"""One layer's edits on plain tensors: a model and a donor that hold just what a test gives them."""

from types import SimpleNamespace
from typing import Any

import torch

from mechforget.models.sites import Edit
from mechforget.sweeps.slots import LayerEdits, Slots

LAYER, ROWS, POSITIONS = 2, 2, 3  # of the base


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Values:
    """A donor of whatever values it was given, by site and unit."""

    def __init__(self, values: dict[tuple[str, int | None], torch.Tensor], **model: Any) -> None:
        self.values, self.model = values, SimpleNamespace(**model)

    def at(self, edit: Edit) -> torch.Tensor:
        return self.values[edit.site, edit.head]


def layer(donor: Values, *edits: Edit, **model: Any) -> LayerEdits:
    """Edit i belongs to slot i."""
    by_site: dict[str, list[tuple[int, Edit]]] = {}
    for slot, edit in enumerate(edits):
        by_site.setdefault(edit.site, []).append((slot, edit))
    return LayerEdits(LAYER, SimpleNamespace(**model), donor, Slots(ROWS), by_site)  # type: ignore[arg-type]


def rows(slot: int) -> slice:
    """Slot i's rows follow the base's and those of the slots before it."""
    return slice(ROWS * (slot + 1), ROWS * (slot + 2))
