"""Where heads, groups and experts lie in stored tensors, as config.json, names and shapes tell.

No model is built. A tensor is therefore split only if the three leave no doubt, for instance if a
projection has as many rows as its heads need; otherwise it is one part. The tests compare the
slices with those that the backends of `models/` use.
"""

import re
from dataclasses import dataclass
from math import prod
from typing import Any

from mechforget.checkpoints.families import BY_HEAD, IN_TURN, family, is_latent

BLOCK = re.compile(r"(?:^|(?<=\.))(?:layers|h|blocks)\.(\d+)\.")
OTHER = re.compile(r"vision|visual|audio")  # towers whose heads the text's config doesn't tell
ATTENTION = re.compile(r"(?:^|\.)(?:self_attn|self_attention|attn|attention)\.(\w+)\.weight$")
EXPERTS = re.compile(r"(?:^|\.)experts\.(?:(\d+)\.)?(\w+?)(?:\.weight)?$")
QKV_MATRICES = ("W_Q", "W_K", "W_V")


@dataclass(frozen=True)
class UnitSlice:
    """The part of a tensor that belongs to one head, group or expert: `start` to `stop` along the
    axis that is split."""

    matrix: str  # W_Q, W_K, W_V, W_O, or a projection of experts
    unit: int
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """How a tensor, seen as [rows, columns], is split. `parts` cover the split axis (along columns
    they are equally wide); if there are none, the tensor is one part."""

    rows: int
    columns: int
    layer: int | None
    axis: int = 0
    parts: tuple[UnitSlice, ...] = ()
    kind: str = ""  # of its parts: head or expert; of W_K and W_V a head is a group of heads
    whole: str = ""  # the matrix that the tensor is, if it is one
    expert: int | None = None  # whose tensor it is, if one expert's

    def cells(self) -> tuple[UnitSlice, ...]:
        return self.parts or (UnitSlice(self.whole, -1, 0, (self.rows, self.columns)[self.axis]),)


def heads_of(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of config.json that say where heads lie, by one name each; None if the config does
    not say."""
    text = config.get("text_config") or config
    latent = is_latent(text)
    heads = _first(text, "num_attention_heads", "n_head", "n_heads")
    return {
        "model_type": text.get("model_type", config.get("model_type")),
        "heads": heads,
        "kv_heads": heads if latent else _first(text, "num_key_value_heads") or heads,
        "head_dim": _first(text, "head_dim"),
        "nope": text["qk_nope_head_dim"] if latent else None,
        "value": _first(text, "v_head_dim") if latent else None,
    }


def layout(name: str, shape: tuple[int, ...], heads: dict[str, Any]) -> Layout:
    """heads: `heads_of` the config."""
    found = None if OTHER.search(name) else BLOCK.search(name)
    layer = int(found[1]) if found else None
    rows, columns = (prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (1, prod(shape))
    if layer is None:
        return Layout(rows, columns, None)
    if expert := EXPERTS.search(name):
        if expert[1]:
            return Layout(rows, columns, layer, whole=expert[2], expert=int(expert[1]))
        if len(shape) == 3:
            return Layout(rows, columns, layer, 0, _equal(expert[2], shape[0], rows), "expert")
    attention = ATTENTION.search(name)
    if attention is None or len(shape) != 2 or not isinstance(heads["heads"], int):
        return Layout(rows, columns, layer)
    axis, parts, whole = _attention(attention[1], shape, heads)
    return Layout(rows, columns, layer, axis, parts, "head" if parts else "", whole)


def _attention(
    module: str, shape: tuple[int, ...], has: dict[str, Any]
) -> tuple[int, tuple[UnitSlice, ...], str]:
    """Split axis, parts, and the matrix that the whole is."""
    n, kv, d = has["heads"], has["kv_heads"], has["head_dim"]
    row = family(has["model_type"])
    out, axis = (shape[1], 1) if row.conv1d else (shape[0], 0)
    inside = shape[1 - axis]
    if module in row.output:  # its input is the heads' values
        fits = inside % n == 0 and (has["nope"] is not None or d is None or inside == n * d)
        return (1 - axis, _equal("W_O", n, inside), "W_O") if fits else (0, (), "")
    alone = dict(zip((*row.qkv, "q_b_proj"), (*QKV_MATRICES, "W_Q"), strict=True))
    if module in alone:
        matrix = alone[module]
        units = n if matrix == "W_Q" else kv
        fits = out % units == 0 and (has["nope"] is not None or d is None or out == units * d)
        return (axis, _equal(matrix, units, out), matrix) if fits else (0, (), "")
    if module == "kv_b_proj" and has["nope"] is not None and out % n == 0:
        width, nope = out // n, has["nope"]
        each = [
            (
                UnitSlice("W_K", h, h * width, h * width + nope),
                UnitSlice("W_V", h, h * width + nope, (h + 1) * width),
            )
            for h in range(n)
        ]
        return 0, tuple(part for both in each for part in both), ""
    if module not in row.fused:
        return 0, (), ""
    if row.order == BY_HEAD and kv == n and out % (3 * n) == 0:
        width = out // (3 * n)
        at = [(m, h, (3 * h + i) * width) for h in range(n) for i, m in enumerate(QKV_MATRICES)]
        return axis, tuple(UnitSlice(m, h, start, start + width) for m, h, start in at), ""
    if row.order == IN_TURN:
        width = d or inside // n
        if out != (n + 2 * kv) * width:
            return 0, (), ""
        order = [(m, h) for m, k in zip(QKV_MATRICES, (n, kv, kv), strict=True) for h in range(k)]
        return (
            axis,
            tuple(UnitSlice(m, h, i * width, (i + 1) * width) for i, (m, h) in enumerate(order)),
            "",
        )
    return 0, (), ""


def _equal(matrix: str, units: int, length: int) -> tuple[UnitSlice, ...]:
    width = length // units
    return tuple(UnitSlice(matrix, i, i * width, (i + 1) * width) for i in range(units))


def _first(fields: dict[str, Any], *names: str) -> Any:
    return next((fields[name] for name in names if isinstance(fields.get(name), int)), None)
