"""Are q, k and v by head? A unit that is changed moves its own heads' z, and no others'.

Rows of the proof's growing batch tell: each has half of one site's units changed. Fused matrices in
another order, and heads that a model mixes, pass every other test.
"""

from typing import TYPE_CHECKING

from mechforget.models.protocol import Point, Unproven

if TYPE_CHECKING:
    from torch import Tensor

Half = tuple[str, list[int]]  # q, k or v, and some of its units


def halves(model: Unproven, probes: list[tuple[int, str | None]]) -> dict[int, list[Half]]:
    """By layer: the units that have a bit in their number and those that don't, for every bit: two
    units are apart in one of them at least, whichever is asked about."""
    units = {"q": model.heads, "k": model.kv_heads, "v": model.kv_heads}
    found: dict[int, list[Half]] = {}
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
    halves: dict[int, list[Half]],
    moved_z: "dict[int, Tensor]",
    seen: "dict[Point, Tensor]",
    dead: set[str],
    tolerance: float,
) -> set[str]:
    """All of q, k and v if one of them isn't what it is called: if units move other heads' z, or
    queries another position's, or values don't move their z at the first position, which sees no
    other. Questions are put so that tensors without values pass."""
    whole = (0, "q_norm") in seen and seen[0, "q_norm"].ndim < 4  # it hands all heads a share
    for layer, z in moved_z.items():
        by = (z[1:] - z[:1]).abs().amax(-1)  # [half, position, head]
        size = z[0].abs().amax(-1)
        limit = tolerance * size.max()
        for (site, units), moved in zip(halves[layer], by, strict=True):
            if site in dead or (whole and site != "v"):
                continue
            group = model.heads // (model.heads if site == "q" else model.kv_heads)
            own = z.new_tensor([head // group in units for head in range(model.heads)])
            strays = moved * (1 - own)
            if site == "q":
                strays[-1] = moved[-1]
            stays = own * (moved[0] <= 0.05 * size[0])
            if (strays > limit).sum().item() or (site == "v" and stays.sum().item()):
                return {"q", "k", "v"}
    return set()
