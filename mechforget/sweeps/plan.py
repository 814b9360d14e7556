"""What a sweep runs: at which layer each variant's rows are appended, and its edits by site."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mechforget.models.sites import BY_EXPERT, GROUP, LAYER, MATRICES, Edit, Spec

Variant = tuple[Edit, ...]


@dataclass(frozen=True)
class Plan:
    """Variants sorted by the layer of their first edit, the order in which their rows are appended.

    A variant's slot is its place in that order: its rows follow the base rows and those of the
    slots before it.
    """

    variants: tuple[Variant, ...]
    order: tuple[int, ...]  # order[slot] = index of the variant as it was given

    @classmethod
    def of(cls, variants: Sequence[Variant]) -> "Plan":
        starts = [min(edit.layer for edit in variant) for variant in variants]
        order = sorted(range(len(variants)), key=starts.__getitem__)
        return cls(tuple(variants[i] for i in order), tuple(order))

    def entering(self) -> dict[int, int]:
        """layer -> the number of variants whose first edit is there."""
        count: dict[int, int] = defaultdict(int)
        for variant in self.variants:
            count[min(edit.layer for edit in variant)] += 1
        return dict(count)

    def edits(self) -> dict[tuple[int, str], list[tuple[int, Edit]]]:
        """(layer, site) -> [(slot, edit)]."""
        found: dict[tuple[int, str], list[tuple[int, Edit]]] = defaultdict(list)
        for slot, variant in enumerate(self.variants):
            for edit in variant:
                found[edit.layer, edit.site].append((slot, edit))
        return dict(found)

    def layer_runs(self, n_layers: int) -> int:
        """The sweep's cost: how many times a block is run per base row, the base included."""
        return n_layers + sum(n_layers - min(e.layer for e in v) for v in self.variants)


def single(spec: Spec, site: str, positions: Iterable[int | None] = (None,)) -> list[Variant]:
    """One variant per layer, unit (head, group or expert, if the site has them) and position."""
    spec.require(site)
    units: Iterable[int | None] = range(spec.units(site)) or (None,)
    return [
        (Edit(layer, site, unit, position),)
        for layer in spec.at(site)
        for unit in units
        for position in positions
    ]


def heads(site: str, chosen: Iterable[tuple[int, int]]) -> Variant:
    """One variant that rewrites several query heads together; chosen: (layer, head)."""
    return tuple(Edit(layer, site, head) for layer, head in sorted(chosen))


def graft(spec: Spec, layer: int, head: int, matrix: str) -> Variant:
    """The variant that grafts a query head's weights: W_Q, W_K, W_V, W_O, or `all` four. W_K and
    W_V belong to the head's group, so the group's other heads get them too."""
    names = MATRICES if matrix == "all" else (matrix,)
    group = spec.group(head)
    return tuple(Edit(layer, m, group if m in ("W_K", "W_V") else head) for m in names)


def units_name(site: str) -> str | None:
    """The name of a site's units in results. k and v are `head`, too: results repeat a group's
    value for each of its query heads."""
    return None if site in LAYER else "expert" if site in BY_EXPERT else "head"


def is_grouped(site: str) -> bool:
    """Whether the site has one unit per group of query heads."""
    return site in (*GROUP, "W_K", "W_V")
