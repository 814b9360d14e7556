"""What a sweep rewrites inside attention: projections, patterns and heads' outputs.

Each object serves one layer. Its methods are called with the activations of the points that
`rewrites` names, in the order in which the layer computes them, and change them in place. What a
later method needs is kept until then, and no longer: a sweep visits many layers.
"""

from functools import partial
from typing import TYPE_CHECKING

from mechforget.models.protocol import Rewrite
from mechforget.models.sites import PROJECTION, Edit
from mechforget.sweeps.slots import LayerEdits

if TYPE_CHECKING:
    from torch import Tensor


class Projection:
    """q, k or v: the donor's values, and grafts of the weights that make them.

    A graft gives the variant's own input to the donor's projection. If the model norms q or k, the
    donor's norm is applied to the projection with the graft in it, and the unit's part is taken.
    """

    def __init__(self, edits: LayerEdits, name: str) -> None:
        """name: q, k or v."""
        self.edits, self.name = edits, name
        self.grafts = edits.of(PROJECTION[name])

    def rewrites(self) -> dict[str, Rewrite]:
        name, norm = self.name, f"{self.name}_norm"
        found: dict[str, Rewrite] = {}
        if self.grafts:
            found[f"{name}_in"] = self.keep_input
        if self.grafts or self.edits.of(name):
            found[name] = self.project
        if self.grafts and name != "v" and self.edits.model.has(self.edits.layer, norm):
            found[f"{norm}_in"] = self.keep_unnormed
            found[norm] = self.norm
        return found

    def keep_input(self, x: "Tensor") -> None:
        self.x = x

    def project(self, t: "Tensor") -> "Tensor":
        for slot, edit in self.grafts:
            t[self.edits.slots.of(slot), :, edit.head] = self._donors(slot, edit)
        if self.grafts:
            del self.x
        return self.edits.put(t, self.name)

    def _donors(self, slot: int, edit: Edit) -> "Tensor":
        """The donor's projection of what this variant's rows feed to the recipient's."""
        w, b = self.edits.donor.model.weight(edit.layer, edit.site, edit.unit)
        y = self.x[self.edits.slots.of(slot)] @ w.to(self.x).T
        return y if b is None else y + b.to(self.x)

    def keep_unnormed(self, t: "Tensor") -> None:
        self.unnormed = t

    def norm(self, t: "Tensor") -> "Tensor":
        model, donor = self.edits.model, self.edits.donor.model
        name = f"{self.name}_norm"
        for slot, edit in self.grafts:
            rows = self.edits.slots.of(slot)
            theirs = donor.norm(self.edits.layer, name, self.unnormed[rows]).to(t)
            theirs = model.per_head(name, theirs)[:, :, edit.head]
            model.per_head(name, t)[rows, :, edit.head] = theirs
        del self.unnormed
        return t


class Heads:
    """Patterns, z, and what a head adds to the attention output (head_out, W_O).

    A head whose output is the donor's is silenced before the output projection, and the donor's
    part is added after it, so that the projection may be of any kind.
    """

    def __init__(self, edits: LayerEdits) -> None:
        self.edits = edits
        self.outputs = edits.of("head_out", "W_O")

    def rewrites(self) -> dict[str, Rewrite]:
        found: dict[str, Rewrite] = {}
        if self.edits.of("pattern"):
            found["pattern"] = partial(self.edits.put, site="pattern")
        if self.outputs or self.edits.of("z"):
            found["z"] = self.silence
        if self.outputs:
            found["attn_raw"] = self.add
        return found

    def silence(self, z: "Tensor") -> "Tensor":
        self.edits.put(z, "z")
        self.added = [self._output(z, slot, edit) for slot, edit in self.outputs]
        for slot, edit in self.outputs:
            self.edits.of_unit(z, slot, edit, "z")[self.edits.slots.at(edit)] = 0
        return z

    def _output(self, z: "Tensor", slot: int, edit: Edit) -> "Tensor":
        """What the head adds: the donor's own head_out, or this z times the donor's W_O."""
        if edit.site == "head_out":
            return self.edits.donor.at(edit).to(z)
        w, _ = self.edits.donor.model.weight(edit.layer, "W_O", edit.unit)
        return z[self.edits.slots.of(slot), :, edit.head] @ w.to(z).T

    def add(self, t: "Tensor") -> "Tensor":
        for (slot, edit), value in zip(self.outputs, self.added, strict=True):
            at = self.edits.slots.at(edit)
            t[self.edits.slots.of(slot)][at] += value[at]
        del self.added
        return t
