"""Are q, k and v laid out by head? If a unit is changed, the z of its own heads must change, and
that of no other head.

The growing batch of the proof tells: each of its rows has one group of one site's units changed.
A fused matrix that is laid out in another order, or heads that the model mixes, would pass every
other test.
"""

from typing import TYPE_CHECKING

from mechforget.models.protocol import Point, Unproven

if TYPE_CHECKING:
    from torch import Tensor

UnitGroup = tuple[str, list[int]]  # q, k or v, and some of its units


def bit_groups(model: Unproven, probes: list[tuple[int, str | None]]) -> dict[int, list[UnitGroup]]:
    """For each layer, its units grouped by the bits of their number: two groups for every bit, one
    where the bit is set and one where it isn't. Two units differ in at least one bit, so that at
    least one group holds the one and not the other."""
    units = {"q": model.heads, "k": model.kv_heads, "v": model.kv_heads}
    found: dict[int, list[UnitGroup]] = {}
    for layer, site in probes:
        if site in units and (layer, "z") in probes:
            n = units[site]
            found.setdefault(layer, []).extend(
                (site, [unit for unit in range(n) if unit >> bit & 1 == has])
                for bit in range(max(1, (n - 1).bit_length()))
                for has in (0, 1)
            )
    return found


def misnamed(
    model: Unproven,
    groups: dict[int, list[UnitGroup]],
    moved_z: "dict[int, tuple[Tensor, Tensor]]",
    seen: "dict[Point, Tensor]",
    dead: set[str],
    tolerance: float,
) -> set[str]:
    """All of q, k and v, if one of them isn't what it is called: if a unit changes the z of another
    head, a query that of another position, or a value doesn't change its z at the first position,
    which attends to nothing else. Comparisons are written so that tensors on the meta device, which
    have no values, pass."""
    whole = (0, "q_norm") in seen and seen[0, "q_norm"].ndim < 4  # normed over all heads
    for layer, (z, before) in moved_z.items():
        by = (z - before).abs().amax(-1)  # [group, position, head]
        size = before.abs().amax(-1)
        limit = tolerance * size.max()
        for (site, units), moved, own_size in zip(groups[layer], by, size, strict=True):
            if site in dead or (whole and site != "v"):
                continue
            group = model.heads // (model.heads if site == "q" else model.kv_heads)
            own = z.new_tensor([head // group in units for head in range(model.heads)])
            strays = moved * (1 - own)
            if site == "q":
                strays[-1] = moved[-1]
            stays = own * (moved[0] <= 0.05 * own_size[0])
            if (strays > limit).sum().item() or (site == "v" and stays.sum().item()):
                return {"q", "k", "v"}
    return set()
