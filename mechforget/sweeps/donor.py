"""Where rewritten values come from: a donor model that runs here, on the recipient's server or on
another server, or values that were computed before."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from mechforget.errors import SweepError
from mechforget.models.beside import (
    beside_the_model,
    is_served,
    opened_for_weights,
    reads_weights,
    together,
    wearing,
)
from mechforget.models.protocol import Model, Point, Rewrite, Served
from mechforget.models.sites import MATRICES, WEIGHTS, Edit
from mechforget.sweeps.plan import Variant

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mechforget.models.nnsight import NNsight
    from mechforget.tasks.encoded import Encoded


@dataclass(frozen=True)
class Donor:
    """A model that runs here, and its activations on rows that are aligned with the base rows."""

    model: Model
    activations: Mapping[Point, "Tensor"]

    @classmethod
    def of(
        cls, model: Model, encoded: "Encoded", variants: "Sequence[Variant]"
    ) -> "Donor | RemoteDonor":
        """A donor with the activations that these variants need, from one forward pass."""
        if is_served(model):
            return RemoteDonor(model, encoded, variants)
        return cls(model, capture(model, encoded.fed, points(variants), encoded.parent))

    def at(self, edit: Edit) -> "Tensor":
        """The donor's value for one edit: [row, position, d], pattern: [row, query, key]."""
        layer, site, unit = edit.layer, edit.site, edit.head
        if site == "resid_mid":
            added = self.model.spec.scale * self.activations[layer, "attn_out"]
            return self.activations[layer, "resid_pre"].to(added) + added  # seen before it is moved
        if site == "head_out":
            w, _ = self.model.weight(layer, "W_O", edit.unit)
            z = self.activations[layer, "z"][:, :, unit]
            return z @ w.to(z).T
        if site == "expert_out":
            given = (self.activations[layer, name] for name in ("experts_in", "router"))
            return self.model.expert_out(layer, edit.unit, *given)
        value = self.activations[layer, site]
        if unit is None:
            return value
        return value[:, unit] if site == "pattern" else value[:, :, unit]


@dataclass(frozen=True)
class RemoteDonor:
    """A donor that runs on a server, which is asked once, when its values are wanted."""

    model: Served
    encoded: "Encoded"
    variants: "Sequence[Variant]"

    @cached_property
    def values(self) -> "Mapping[Edit, Tensor]":
        half = self.model.half_donors
        return donor_values(self.model, self.encoded, self.variants, half_precision=half)

    def at(self, edit: Edit) -> "Tensor":
        return self.values[at_all_positions(edit)]

    def for_recipient(self, recipient: "Model | Served") -> "AdapterDonor | FileDonor | ValueDonor":
        """The form in which it travels to the recipient's server. Nothing but a name is sent if
        both run on one deployment, or if weights are grafted whose files the server has."""
        if together(self.model, recipient):
            return AdapterDonor(self.model.adapter, self.encoded)
        grafts = all(edit.site in MATRICES for variant in self.variants for edit in variant)
        if self.variants and grafts and reads_weights(recipient, self.model):
            return FileDonor(self.model.deployment[1])
        return ValueDonor(self.values)


@dataclass(frozen=True)
class AdapterDonor:
    """A donor on the recipient's own deployment: another adapter of the same base model, or the
    base model itself (None). Only the adapter's name travels."""

    adapter: str | None
    encoded: "Encoded"

    def load(self, model: Model, variants: "Sequence[Variant]") -> Donor:
        """The donor with the activations that these variants need, made where `model` runs."""
        served = cast("NNsight", model)  # the only backend that a server runs
        with wearing(served, self.adapter) as other:
            found = capture(other, self.encoded.fed, points(variants), self.encoded.parent)
            return Donor(other, found)


@dataclass(frozen=True)
class FileDonor:
    """A donor of weights that the recipient's server reads from its own files."""

    name: str

    def load(self, model: Model, variants: "Sequence[Variant]") -> Donor:
        """The donor, without activations, in the dtype of `model`."""
        held = next(model.module.parameters()).dtype
        return Donor(opened_for_weights(self.name, str(held).removeprefix("torch.")), {})


@dataclass(frozen=True)
class ValueDonor:
    """Values that were computed on another server, with the edits that they belong to."""

    values: "Mapping[Edit, Tensor]"

    def at(self, edit: Edit) -> "Tensor":
        return self.values[at_all_positions(edit)]

    def split(
        self, variants: "Sequence[Variant]", limit: float
    ) -> "Iterator[tuple[ValueDonor, list[Variant]]]":
        """Consecutive groups of variants, each with its own values: at most `limit` bytes of them,
        unless a single variant needs more."""
        group: list[Variant] = []
        held: dict[Edit, Tensor] = {}
        for variant in variants:
            mine = {at_all_positions(edit): self.at(edit) for edit in variant}
            more = held | mine
            if group and sum(v.nbytes for v in more.values()) > limit:
                yield ValueDonor(held), group
                group, more = [], mine
            group, held = [*group, variant], more
        yield ValueDonor(held), group


@beside_the_model
def donor_values(
    model: Model,
    encoded: "Encoded",
    variants: "Sequence[Variant]",
    *,
    half_precision: bool = False,
) -> "dict[Edit, Tensor]":
    """The donor's value for every edit of these variants, by `at_all_positions(edit)`. Weights are
    not among them.

    half_precision: send float16 wherever a value fits its range. That halves the bytes, but keeps
    11 significant bits, so a value that equals the recipient's own is no longer recognised as such.

    Raises: SweepError: a variant grafts weights.
    """
    import torch

    if any(edit.site in WEIGHTS for variant in variants for edit in variant):
        raise SweepError("weights can be grafted only where both checkpoints are")
    donor = Donor.of(model, encoded, variants)

    def sent(edit: Edit) -> "Tensor":
        value = donor.at(edit)
        small = value.half() if half_precision and edit.site != "router" else value  # expert ids
        # A view would be pickled together with the whole tensor that it is a view of.
        return (small if small.isfinite().all() else value).cpu().clone()

    with torch.no_grad():
        wanted = dict.fromkeys(at_all_positions(edit) for variant in variants for edit in variant)
        return {edit: sent(edit) for edit in wanted}


def at_all_positions(edit: Edit) -> Edit:
    """The same edit without its position: one value of a donor serves all positions."""
    return replace(edit, position=None)


def forward(model: Model, encoded: "Encoded", rewrites: "Mapping[Point, Rewrite]") -> "Tensor":
    """`Model.run` on a task's prompts, packed as they are."""
    import torch

    return model.run(torch.as_tensor(encoded.fed, device=model.device), rewrites, encoded.parent)


@beside_the_model
def capture(
    model: Model, ids: Any, points: Sequence[Point], parent: "np.ndarray | None" = None
) -> dict[Point, "Tensor"]:
    """Copies of the activations at these points, from one forward pass; without points, no pass.

    ids, parent: as `Model.run`; ids may be numpy's.
    """
    import torch

    if not points:
        return {}
    found: dict[Point, Tensor] = {}

    def keep(point: Point) -> Callable[["Tensor"], None]:
        return lambda t: found.__setitem__(point, t.clone())

    # Nobody reads these logits, so only one position is unembedded.
    skip: dict[Point, Callable[[Tensor], Tensor | None]] = {
        (model.spec.layers, "unembed"): lambda t: t[:1, :1]
    }
    with torch.no_grad():
        fed = torch.as_tensor(ids, device=model.device)
        model.run(fed, skip | {point: keep(point) for point in points}, parent)
    return found


def points(variants: Sequence[Variant]) -> list[Point]:
    """The points whose activations a donor needs for these variants."""
    from_site = {
        "head_out": ("z",),
        "resid_mid": ("resid_pre", "attn_out"),
        "expert_out": ("experts_in", "router"),
    }
    return sorted(
        {
            (edit.layer, point)
            for variant in variants
            for edit in variant
            if edit.site not in WEIGHTS
            for point in from_site.get(edit.site, (edit.site,))
        }
    )
