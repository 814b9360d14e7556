"""What a sweep rewrites in the residual stream, and where variants join the batch."""

from functools import partial
from typing import TYPE_CHECKING

from mechforget.models.protocol import Rewrite
from mechforget.sweeps.slots import LayerEdits

if TYPE_CHECKING:
    from torch import Tensor


class Residual:
    """One layer's stream and what its sublayers add to it. Its methods are called as those of
    `attention.Projection` are.

    No module computes resid_mid, so it is rewritten through attn_out: what attention adds becomes
    the wanted value minus what the variant had before.
    """

    def __init__(self, edits: LayerEdits, joining: int) -> None:
        """joining: the number of variants that start at this layer."""
        self.edits, self.joining = edits, joining

    def rewrites(self) -> dict[str, Rewrite]:
        found: dict[str, Rewrite] = {"resid_pre": self.enter}
        if self.edits.of("attn_out", "resid_mid"):
            found["attn_out"] = self.attend
        for site in ("mlp_out", "resid_post"):
            if self.edits.of(site):
                found[site] = partial(self.edits.put, site=site)
        return found

    def enter(self, t: "Tensor") -> "Tensor":
        if self.joining:
            t = self.edits.slots.append(t, self.joining)
        self.edits.put(t, "resid_pre")
        if self.edits.of("resid_mid"):
            self.before = t
        return t

    def attend(self, t: "Tensor") -> "Tensor":
        for slot, edit in self.edits.of("resid_mid"):
            rows, at = self.edits.slots.of(slot), self.edits.slots.at(edit)
            before = self.before[rows].to(t)  # indexed on its own device, then moved to t's
            wanted = (self.edits.donor.at(edit).to(t) - before) / self.edits.model.spec.scale
            t[rows][at] = wanted[at]
        if self.edits.of("resid_mid"):
            del self.before
        return self.edits.put(t, "attn_out")
