"""Where the growing batch keeps each variant, and what one layer writes to the variants' rows.

The base rows come first. Each variant has a slot: as many rows, appended at the layer where the
variant starts, in the order of the slots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechforget.models.protocol import Model
from mechforget.models.sites import Edit

if TYPE_CHECKING:
    from torch import Tensor

Slotted = tuple[int, Edit]  # the slot whose rows an edit rewrites, and the edit


@dataclass(frozen=True)
class Slots:
    """The rows of a growing batch; `rows` of them are the base's."""

    rows: int

    def of(self, slot: int) -> slice:
        """A variant's rows."""
        return slice((slot + 1) * self.rows, (slot + 2) * self.rows)

    def at(self, slot: int, edit: Edit) -> tuple[slice, slice]:
        """A variant's rows, and the positions that the edit rewrites."""
        return self.of(slot), positions(edit)

    def append(self, t: "Tensor", copies: int) -> "Tensor":
        """The batch followed by this many copies of the base rows."""
        import torch
        from einops import repeat

        return torch.cat([t, repeat(t[: self.rows], "row ... -> (copy row) ...", copy=copies)])

    def gather(self, t: "Tensor", row: "Tensor", position: "Tensor") -> "Tensor":
        """t at (row, position) of the base and of each variant: [1 + slot, read, d]."""
        import torch

        first = torch.arange(t.shape[0] // self.rows, device=t.device)[:, None] * self.rows
        return t[first + row, position]


def positions(edit: Edit) -> slice:
    """The positions that an edit rewrites, as a slice so that the axis stays."""
    return slice(None) if edit.position is None else slice(edit.position, edit.position + 1)


@dataclass(frozen=True)
class LayerEdits:
    """The edits of one layer, and what it takes to carry them out."""

    layer: int
    model: Model
    donor: Any  # Donor or ValueDonor
    slots: Slots
    by_site: Mapping[str, Sequence[Slotted]]

    def of(self, *sites: str) -> list[Slotted]:
        return [one for site in sites for one in self.by_site.get(site, ())]

    def put(self, t: "Tensor", site: str) -> "Tensor":
        """Writes the donor's values of a site into the variants' rows, in place."""
        for slot, edit in self.of(site):
            value = self.donor.at(edit).to(t)
            rows, at = self.slots.at(slot, edit)
            if edit.head is None:
                t[rows, at] = value[:, at]
            elif site == "pattern":
                t[rows, edit.head, at] = value[:, at]
            else:
                t[rows, at, edit.head] = value[:, at]
        return t
