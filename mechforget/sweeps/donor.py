"""Where rewritten values come from: another checkpoint's activations, or what it made of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mechforget.errors import SweepError
from mechforget.models.beside import (
    beside_the_model,
    elsewhere,
    filed,
    reads_weights,
    together,
    wearing,
)
from mechforget.models.protocol import Model, Point
from mechforget.models.sites import MATRICES, WEIGHTS, Edit
from mechforget.sweeps.plan import Variant

if TYPE_CHECKING:
    from torch import Tensor

    from mechforget.tasks.encoded import Encoded


@dataclass(frozen=True)
class Donor:
    """Where rewritten values come from: a model, and its activations on rows like the base's."""

    model: Model
    activations: Mapping[Point, "Tensor"]

    @classmethod
    def of(cls, model: Model, encoded: "Encoded", variants: "Sequence[Variant]") -> "Donor | Asked":
        """With what these variants take, from one forward pass over these rows."""
        if elsewhere(model):
            return Asked(model, encoded, variants)
        return cls(model, capture(model, tokens(encoded, model), points(variants)))

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
class Asked:
    """A donor that is served: asked once, when its values are wanted."""

    model: Any
    encoded: "Encoded"
    variants: "Sequence[Variant]"

    @cached_property
    def values(self) -> "Mapping[Edit, Tensor]":
        return bring(self.model, self.encoded, self.variants, half=self.model.half_donors)

    def at(self, edit: Edit) -> "Tensor":
        return self.values[everywhere(edit)]

    def sent_to(self, recipient: Model) -> "Neighbour | Filed | Brought":
        if together(self.model, recipient):
            return Neighbour(self.model.adapter, self.encoded)
        grafts = all(edit.site in MATRICES for variant in self.variants for edit in variant)
        if self.variants and grafts and reads_weights(recipient, self.model):
            return Filed(self.model.deployment[1])
        return Brought(self.values)


@dataclass(frozen=True)
class Neighbour:
    """A donor on the recipient's own deployment: nothing of it travels but the adapter's name."""

    adapter: str | None
    encoded: "Encoded"

    def here(self, model: Any, variants: "Sequence[Variant]") -> Donor:
        """The donor where the recipient runs, with what these variants take."""
        with wearing(model, self.adapter) as other:
            return Donor(other, capture(other, tokens(self.encoded, other), points(variants)))


@dataclass(frozen=True)
class Filed:
    """A donor of weights whose files the recipient's server has: no weight travels."""

    name: str

    def here(self, model: Any, variants: "Sequence[Variant]") -> Donor:
        held = next(model.module.parameters()).dtype
        return Donor(filed(self.name, str(held).removeprefix("torch.")), {})


@dataclass(frozen=True)
class Brought:
    """A donor whose values were computed where it is served: edit -> value."""

    values: "Mapping[Edit, Tensor]"

    def at(self, edit: Edit) -> "Tensor":
        return self.values[everywhere(edit)]

    def parts(
        self, variants: "Sequence[Variant]", limit: float
    ) -> "Iterator[tuple[Brought, list[Variant]]]":
        """The variants in order, as many together as `limit` bytes of values hold."""
        group: list[Variant] = []
        held: dict[Edit, Tensor] = {}
        for variant in variants:
            mine = {everywhere(edit): self.at(edit) for edit in variant}
            more = held | mine
            if group and sum(v.nbytes for v in more.values()) > limit:
                yield Brought(held), group
                group, more = [], mine
            group, held = [*group, variant], more
        yield Brought(held), group


@beside_the_model
def bring(
    model: Model, encoded: "Encoded", variants: "Sequence[Variant]", *, half: bool = False
) -> "dict[Edit, Tensor]":
    """The value of every edit of these variants, by `everywhere`; weights are not brought.

    half: as float16, where it holds them: half the bytes, 11 bits of each number, and a value that
    is the recipient's own isn't recognised any more.

    Raises: SweepError: weights are asked for.
    """
    import torch

    if any(edit.site in WEIGHTS for variant in variants for edit in variant):
        raise SweepError("weights can be grafted only where both checkpoints are")
    donor = Donor.of(model, encoded, variants)

    def sent(edit: Edit) -> "Tensor":
        value = donor.at(edit)
        small = value.half() if half and edit.site != "router" else value  # that holds numbers
        # A view would be pickled with all that it is a view of.
        return (small if small.isfinite().all() else value).cpu().clone()

    with torch.no_grad():
        wanted = dict.fromkeys(everywhere(edit) for variant in variants for edit in variant)
        return {edit: sent(edit) for edit in wanted}


def everywhere(edit: Edit) -> Edit:
    """At all positions: what a donor brings is the same for each of them."""
    return replace(edit, position=None)


def tokens(encoded: "Encoded", model: Model) -> "Tensor":
    """The rows' ids where the model is."""
    import torch

    return torch.as_tensor(encoded.ids, device=model.device)


@beside_the_model
def capture(model: Model, ids: "Tensor", points: Sequence[Point]) -> dict[Point, "Tensor"]:
    """Activations at some points from one forward pass, or none."""
    import torch

    if not points:
        return {}
    found: dict[Point, Tensor] = {}

    def keep(point: Point) -> Callable[["Tensor"], None]:
        return lambda t: found.__setitem__(point, t.clone())

    # Nobody reads these logits: one position of them is enough.
    skip: dict[Point, Callable[[Tensor], Tensor | None]] = {
        (model.spec.layers, "unembed"): lambda t: t[:1, :1]
    }
    with torch.no_grad():
        model.run(ids.to(model.device), skip | {point: keep(point) for point in points})
    return found


def points(variants: Sequence[Variant]) -> list[Point]:
    """The activations that a donor must bring for these variants."""
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
