"""Masks and positions of packed rows: each token attends to its ancestors, within its layer's
window, and has its depth as position."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.tasks.tree import depth

if TYPE_CHECKING:
    import torch

ANY = 1 << 30
FULL, WINDOW, CHUNK = "full_attention", "sliding_attention", "chunked_attention"


def arguments(
    config: Any, parent: np.ndarray | None, dtype: Any, device: "torch.device"
) -> dict[str, Any]:
    """What a Hugging Face model is called with besides the ids.

    parent: [row, node], see `tasks.tree.Tree`; None: a row is one sequence, and nothing is needed.
    A model whose layers attend differently takes a mask
    for each kind of layer; masks are added to scores, [row, 1, query, key].
    """
    import torch

    if parent is None:
        return {}
    at = depth(parent)
    ancestor = _ancestors(parent)

    def mask(kind: str) -> "torch.Tensor":
        sees = ancestor
        if kind == WINDOW and (window := getattr(config, "sliding_window", None)):
            sees = sees & (at[:, :, None] - at[:, None, :] < window)
        if kind == CHUNK:
            part = at // config.attention_chunk_size
            sees = sees & (part[:, :, None] == part[:, None, :])
        shown = torch.as_tensor(sees, device=device)[:, None]
        added = torch.zeros(shown.shape, dtype=dtype, device=device)
        return added.masked_fill_(~shown, torch.finfo(dtype).min)

    kinds = getattr(config, "layer_types", None)
    everywhere = WINDOW if getattr(config, "use_sliding_window", True) else FULL
    masks = {kind: mask(kind) for kind in set(kinds)} if kinds else mask(everywhere)
    return {"position_ids": torch.as_tensor(at, device=device), "attention_mask": masks}


def _ancestors(parent: np.ndarray) -> np.ndarray:
    """bool [row, node, node]: whether the second is the first or one of its ancestors."""
    rows, nodes = parent.shape
    found = np.broadcast_to(np.eye(nodes, dtype=bool), (rows, nodes, nodes)).copy()
    row = np.arange(rows)
    for node in range(1, nodes):
        above = parent[:, node]
        found[:, node] |= found[row, above] & (above >= 0)[:, None]
    return found


def largest(config: Any) -> int:
    """How many nodes a packed row may have. Llama 4 scales attention by a token's place in its row,
    not by its position; the scale is 1 in the first `floor_scale` places."""
    tuned = getattr(config, "attn_temperature_tuning", False)
    return int(config.floor_scale) - 1 if tuned else ANY
