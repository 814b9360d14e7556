"""Where the growing batch keeps each variant, and what one layer writes to the variants' rows.

The base rows come first. Each variant has a slot: as many rows, appended at the layer where the
variant starts, in the order of the slots. Where rows are packed, a position is many nodes: the
tokens that have this position in a row of some prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechforget.models.protocol import Model
from mechforget.models.sites import Edit

if TYPE_CHECKING:
    from torch import Tensor

    from mechforget.tasks.tree import Tree

Slotted = tuple[int, Edit]  # the slot whose rows an edit rewrites, and the edit


@dataclass(frozen=True)
class Slots:
    """The rows of a growing batch; `rows` of them are the base's."""

    rows: int
    tree: "Tree | None" = None

    def of(self, slot: int) -> slice:
        """A variant's rows."""
        return slice((slot + 1) * self.rows, (slot + 2) * self.rows)

    def at(self, edit: Edit) -> tuple[Any, Any]:
        """The index [row, node] of what the edit rewrites, within a variant's rows."""
        if edit.position is None:
            return slice(None), slice(None)
        if self.tree is None:
            return slice(None), slice(edit.position, edit.position + 1)
        if edit.position >= self.tree.node.shape[1]:
            return slice(0), slice(0)
        node = self.tree.node[:, edit.position]
        return self.tree.row[node >= 0], node[node >= 0]

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
            value, at = self.donor.at(edit).to(t), self.slots.at(edit)
            self.of_unit(t, slot, edit, site)[at] = value[at]
        return t

    def of_unit(self, t: "Tensor", slot: int, edit: Edit, site: str) -> "Tensor":
        """A variant's rows of the edit's head, group or expert: a view [row, node, ...] of t."""
        rows = t[self.slots.of(slot)]
        if edit.head is None:
            return rows
        return rows[:, edit.head] if site == "pattern" else rows[:, :, edit.head]
