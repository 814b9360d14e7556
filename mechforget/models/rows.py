"""Rows that are appended halfway through a forward pass: masks and positions follow them."""

from typing import Any

from mechforget.models.protocol import Rewrite

Given = tuple[tuple[Any, ...], dict[str, Any]]  # what a block is called with


def entering(fn: Rewrite | None, given: Given, base: int, heads: int) -> Given:
    """A block's arguments with its hidden states rewritten by `fn`, and the others for as many rows
    as it returned, where the forward began with `base`.

    There is no padding mask, so every row's mask is the same and the first serves all. Biases by
    head alone (MPT's `position_bias`) have no rows; BLOOM's `alibi` has rows · heads on one axis.
    """
    args, kwargs = given
    hidden = args[0] if args else kwargs["hidden_states"]
    if fn is not None and (new := fn(hidden)) is not None:
        hidden = new
    rows = hidden.shape[0]
    others = tuple(_follow("", value, rows, base, heads) for value in args[1:])
    named = {
        name: hidden if name == "hidden_states" else _follow(name, value, rows, base, heads)
        for name, value in kwargs.items()
    }
    return ((hidden, *others) if args else ()), named


def _follow(name: str, value: Any, rows: int, base: int, heads: int) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_follow(name, v, rows, base, heads) for v in value)
    if rows == base or getattr(value, "ndim", 0) < 2 or name == "position_bias":
        return value
    if name == "alibi":
        return value[:heads].repeat(rows, *[1] * (value.ndim - 1))
    return value[:1].expand(rows, *value.shape[1:]) if value.shape[0] == base else value
