"""Masks and positions for rows that are appended halfway through a forward pass."""

from typing import Any

from mechforget.checkpoints.families import Family
from mechforget.models.protocol import Rewrite

Given = tuple[tuple[Any, ...], dict[str, Any]]  # what a block is called with


def entering(fn: Rewrite | None, given: Given, base: int, heads: int, row: Family) -> Given:
    """A block's arguments with its hidden states rewritten by `fn`, and its other arguments for as
    many rows as `fn` returned. The forward pass began with `base` rows.

    There is no padding mask, so every row has the same mask, and the first row's serves all.
    row: says which attention biases don't have one entry a row.
    """
    args, kwargs = given
    hidden = args[0] if args else kwargs["hidden_states"]
    if fn is not None and (new := fn(hidden)) is not None:
        hidden = new
    rows = hidden.shape[0]
    others = tuple(_follow("", value, rows, base, heads, row) for value in args[1:])
    named = {
        name: hidden if name == "hidden_states" else _follow(name, value, rows, base, heads, row)
        for name, value in kwargs.items()
    }
    return ((hidden, *others) if args else ()), named


def _follow(name: str, value: Any, rows: int, base: int, heads: int, row: Family) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_follow(name, v, rows, base, heads, row) for v in value)
    if rows == base or getattr(value, "ndim", 0) < 2 or name in row.bias_by_head:
        return value
    if name in row.bias_by_row_and_head:
        return value[:heads].repeat(rows, *[1] * (value.ndim - 1))
    return value[:1].expand(rows, *value.shape[1:]) if value.shape[0] == base else value
