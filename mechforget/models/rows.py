"""Masks and positions for rows that are appended halfway through a forward pass."""

from functools import partial
from typing import Any

from mechforget.checkpoints.families import Family
from mechforget.models.protocol import Rewrite

Given = tuple[tuple[Any, ...], dict[str, Any]]  # what a block is called with


def entering(
    fn: Rewrite | None, given: Given, base: int, heads: int, row: Family, *, packed: bool = False
) -> Given:
    """A block's arguments with its hidden states rewritten by `fn`, and its other arguments for as
    many rows as `fn` returned. The forward pass began with `base` rows.

    Row r gets the arguments of row r modulo `base`. There is no padding mask, so that all rows have
    the same arguments, and the first row's serve all, unless they are packed.
    row: says which attention biases don't have one entry a row.
    """
    args, kwargs = given
    hidden = args[0] if args else kwargs["hidden_states"]
    if fn is not None and (new := fn(hidden)) is not None:
        hidden = new
    rows = hidden.shape[0]
    follow = partial(_follow, rows=rows, base=base, heads=heads, row=row, packed=packed)
    others = tuple(follow("", value) for value in args[1:])
    named = {
        name: hidden if name == "hidden_states" else follow(name, value)
        for name, value in kwargs.items()
    }
    return ((hidden, *others) if args else ()), named


def _follow(
    name: str, value: Any, rows: int, base: int, heads: int, row: Family, packed: bool
) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_follow(name, v, rows, base, heads, row, packed) for v in value)
    if rows == base or getattr(value, "ndim", 0) < 2 or name in row.bias_by_head:
        return value
    if name in row.bias_by_row_and_head:
        return value[:heads].repeat(rows, *[1] * (value.ndim - 1))
    if value.shape[0] != base:
        return value
    if packed and base > 1:
        return value[[r % base for r in range(rows)]]
    return value[:1].expand(rows, *value.shape[1:])
