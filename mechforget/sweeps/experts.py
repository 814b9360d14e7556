"""What a sweep rewrites in a mixture of experts: the routing, and what one expert adds."""

from typing import TYPE_CHECKING

from mechforget.models.protocol import Rewrite
from mechforget.models.sites import Edit
from mechforget.sweeps.slots import LayerEdits

if TYPE_CHECKING:
    from torch import Tensor


class Experts:
    """One layer's mixture. Its methods are called as those of `attention.Projection` are.

    An expert's part of the mixture's sum is replaced by adding the donor's part minus the
    recipient's, which is computed on the variant's own input and routing.
    """

    def __init__(self, edits: LayerEdits) -> None:
        self.edits = edits
        self.changed = edits.of("expert_out", "W_expert")

    def rewrites(self) -> dict[str, Rewrite]:
        found: dict[str, Rewrite] = {}
        if self.changed:
            found["experts_in"] = self.keep_input
        if self.changed or self.edits.of("router"):
            found["router"] = self.route
        if self.changed:
            found["experts"] = self.swap
        return found

    def keep_input(self, x: "Tensor") -> None:
        self.x = x

    def route(self, t: "Tensor") -> "Tensor":
        self.routing = self.edits.put(t, "router")
        return t

    def swap(self, t: "Tensor") -> "Tensor":
        for slot, edit in self.changed:
            rows = self.edits.slots.of(slot)
            given = self.x[rows], self.routing[rows]
            mine = self.edits.model.expert_out(edit.layer, edit.unit, *given)
            change = self._donors(edit, *given).to(mine) - mine
            at = self.edits.slots.at(edit)
            t[rows][at] += change[at]
        del self.x, self.routing
        return t

    def _donors(self, edit: Edit, x: "Tensor", routing: "Tensor") -> "Tensor":
        """The donor's own expert_out, or what its expert's weights make of the variant's rows."""
        if edit.site == "expert_out":
            return self.edits.donor.at(edit)
        return self.edits.donor.model.expert_out(edit.layer, edit.unit, x, routing)
