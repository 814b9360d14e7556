"""Which parameters belong to attention heads, which to MLPs, and which to neither."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Parameter

    Owners = Mapping[Parameter, tuple[str, int | None]]  # (part, layer)


def owners(
    whole: "Iterable[Parameter]",
    blocks: "Iterable[tuple[Iterable[Parameter], Iterable[Parameter], Iterable[Parameter]]]",
) -> "Owners":
    """`protocol.Model.owners`, from each layer's (block, mlp, attention). The order is that of
    `whole`, which two checkpoints share. Of part rest: all that no layer claims, too."""
    found: dict[Parameter, tuple[str, int | None]] = dict.fromkeys(whole, ("rest", None))
    for layer, parts in enumerate(blocks):
        for name, owned in zip(("rest", "mlp", "attention"), parts, strict=True):
            found.update(dict.fromkeys(owned, (name, layer)))
    return found


def select(owners: "Owners", part: str, layer: int | None) -> "list[Parameter]":
    """The parameters of one part, in all layers or in one."""
    return [p for p, (name, at) in owners.items() if name == part and layer in (None, at)]
