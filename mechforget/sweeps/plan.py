"""What a sweep will run: which variant's rows enter at which layer, and which edits wait where."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mechforget.models.sites import BY_EXPERT, GROUP, LAYER, MATRICES, Edit, Spec

Variant = tuple[Edit, ...]


@dataclass(frozen=True)
class Plan:
    """Variants in the order in which their rows are appended: by the layer they start at.

    Slot i's rows follow the base rows and those of the slots before it.
    """

    variants: tuple[Variant, ...]
    order: tuple[int, ...]  # order[slot] = index of the variant as it was given

    @classmethod
    def of(cls, variants: Sequence[Variant]) -> "Plan":
        starts = [min(edit.layer for edit in variant) for variant in variants]
        order = sorted(range(len(variants)), key=starts.__getitem__)
        return cls(tuple(variants[i] for i in order), tuple(order))

    def entering(self) -> dict[int, int]:
        """layer -> how many variants start there."""
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
        """Blocks executed per base row, the base included: the sweep's cost in units of a block."""
        return n_layers + sum(n_layers - min(e.layer for e in v) for v in self.variants)


def single(spec: Spec, site: str, positions: Iterable[int | None] = (None,)) -> list[Variant]:
    """One variant per layer, head (group, expert: where the site has them) and position."""
    spec.require(site)
    units: Iterable[int | None] = range(spec.units(site)) or (None,)
    return [
        (Edit(layer, site, unit, position),)
        for layer in spec.at(site)
        for unit in units
        for position in positions
    ]


def heads(site: str, chosen: Iterable[tuple[int, int]]) -> Variant:
    """One variant that rewrites several query heads, (layer, head), together."""
    return tuple(Edit(layer, site, head) for layer, head in sorted(chosen))


def graft(spec: Spec, layer: int, head: int, matrix: str) -> Variant:
    """A query head's weights: one of W_Q, W_K, W_V, W_O, or `all` of them (its group's k and v)."""
    names = MATRICES if matrix == "all" else (matrix,)
    group = spec.group(head)
    return tuple(Edit(layer, m, group if m in ("W_K", "W_V") else head) for m in names)


def units_name(site: str) -> str | None:
    """What a site's units are called in results; k and v are repeated over their group's heads."""
    return None if site in LAYER else "expert" if site in BY_EXPERT else "head"


def is_grouped(site: str) -> bool:
    return site in (*GROUP, "W_K", "W_V")
