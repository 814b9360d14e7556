"""Rows that are appended halfway through a forward pass: masks and positions follow them."""

from typing import Any


def follow(kwargs: dict[Any, Any], rows: int, base: int, heads: int) -> dict[Any, Any]:
    """A block's other arguments for `rows` rows, where the forward began with `base`.

    There is no padding mask, so every row's mask is the same and the first serves all. Biases by
    head alone (MPT's `position_bias`) have no rows; BLOOM's `alibi` has rows · heads on one axis.
    """
    return {name: _one(name, value, rows, base, heads) for name, value in kwargs.items()}


def _one(name: Any, value: Any, rows: int, base: int, heads: int) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_one(name, v, rows, base, heads) for v in value)
    if rows == base or getattr(value, "ndim", 0) < 2 or name == "position_bias":
        return value
    if name == "alibi":
        return value[:heads].repeat(rows, *[1] * (value.ndim - 1))
    return value[:1].expand(rows, *value.shape[1:]) if value.shape[0] == base else value
