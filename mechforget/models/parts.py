"""Which parameters belong to heads, which to MLPs, which to neither."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Parameter


def select(
    whole: "Iterable[Parameter]",
    blocks: "Iterable[tuple[Iterable[Parameter], Iterable[Parameter], Iterable[Parameter]]]",
    part: str,
    layer: int | None,
) -> "list[Parameter]":
    """`protocol.Model.parameters`, from each layer's (block, mlp, attention). The order is that of
    `whole`, which two checkpoints share. Of part rest: all that no layer claims, too.
    """
    every = {id(p): p for p in whole}
    named: dict[int, tuple[str, int | None]] = dict.fromkeys(every, ("rest", None))
    for index, owners in enumerate(blocks):
        for name, owned in zip(("rest", "mlp", "attention"), owners, strict=True):
            named |= {id(p): (name, index) for p in owned}
    return [every[key] for key, (p, at) in named.items() if p == part and layer in (None, at)]
