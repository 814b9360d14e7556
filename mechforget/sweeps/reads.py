"""Activations at chosen tokens, such as the last token of each prompt."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mechforget.errors import MeasureError, SweepError
from mechforget.models.beside import beside_the_model
from mechforget.models.protocol import Model, Point, Rewrite
from mechforget.tasks.tree import groups, lone

if TYPE_CHECKING:
    from torch import Tensor

    from mechforget.tasks.encoded import Encoded


def prompt_tokens(encoded: "Encoded", position: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Ids [prompt, position] without answers, and the position of each prompt's token [prompt].

    position: counted from the prompt's end; -1 is its last token.
    Raises: MeasureError: the token would be a prompt's first one. That token sees no other, and in
        many models its activations are huge (attention sinks, Sun et al. 2024, 2402.17762).
    """
    rows = encoded.first_rows
    length = encoded.prompt_length[rows]
    if position >= 0:
        raise MeasureError(f"position {position}: want one from the prompt's end, -1 or less")
    short = np.flatnonzero(length + position < 1)
    if len(short):
        raise MeasureError(
            f"position {position} of prompt {short[0]} ({length[short[0]]} tokens) is its first or "
            f"before it ({len(short)} such): want longer prompts (few_shot), or leave them out"
        )
    return encoded.ids[rows, : length.max()], length + position


def clusters(encoded: "Encoded", position: int = -1) -> np.ndarray:
    """Each prompt's cluster [prompt]. Clusters of prompts that are equal up to the token that is
    read are merged, because their activations are equal too, whatever the answers are."""
    rows = encoded.first_rows
    ends = np.maximum(0, encoded.prompt_length[rows] + position + 1)
    found, first = encoded.cluster.copy(), dict[bytes, int]()
    for prompt, (row, end) in enumerate(zip(rows, ends, strict=True)):
        same = first.setdefault(encoded.ids[row, :end].tobytes(), prompt)
        found[found == found[prompt]] = found[same]
    return found


def read(
    model: Model,
    ids: np.ndarray,
    points: Sequence[Point],
    row: np.ndarray,
    position: np.ndarray,
    *,
    memory: float,
) -> "dict[Point, Tensor]":
    """Activations at these points, point -> [token, ...], in the model's dtype.

    Args: ids: [row, position]. row, position: of each token that is read [token]; only these are
        kept, and sent by a server. memory: GB for one forward pass, which decides how many rows it
        has.
    Raises: MeasureError: an activation is inf or NaN. In float16 large ones are inf.
    """
    import torch

    from mechforget.sweeps.chunks import batches, max_tokens  # not needed on a server

    length = np.zeros(len(ids), np.int64)  # as much of each row as what is read there depends on
    np.maximum.at(length, row, position + 1)
    spec = model.spec
    every = groups([ids], length, np.arange(len(ids)), **spec.packing)
    parts, order = [], []
    for batch in batches(every, max_tokens(spec, memory, every[-1].width)):
        rows, tree = lone(ids, length, batch)
        mine = np.flatnonzero(np.isin(row, rows))
        new = np.empty(len(ids), np.int64)
        new[rows] = np.arange(len(rows))
        at = tree.row[new[row[mine]]], tree.node[new[row[mine]], position[mine]]
        parts.append(_read(model, tree.fill(ids[rows]), points, *at, tree.linked))
        order.append(mine)
    back = np.argsort(np.concatenate(order))
    found = {point: torch.cat([part[point] for part in parts])[back] for point in points}
    for (layer, name), value in found.items():
        if not bool(value.isfinite().all()):
            held = str(value.dtype).removeprefix("torch.")
            raise MeasureError(
                f"{name} of layer {layer} holds inf or NaN in {held}: use float32 or bfloat16"
            )
    return found


@beside_the_model
def _read(
    model: Model,
    ids: np.ndarray,
    points: Sequence[Point],
    row: np.ndarray,
    position: np.ndarray,
    parent: np.ndarray | None,
) -> "dict[Point, Tensor]":
    import torch

    found: dict[Point, Tensor] = {}

    def keep(t: "Tensor", point: Point) -> None:
        found[point] = t[row, position].cpu()

    # Nobody reads these logits, so only one position is unembedded.
    rewrites: dict[Point, Rewrite] = {(model.spec.layers, "unembed"): lambda t: t[:1, :1]}
    rewrites |= {point: partial(keep, point=point) for point in points}
    with torch.no_grad():
        model.run(torch.as_tensor(ids, device=model.device), rewrites, parent)
    return found


@beside_the_model
def head_outputs(model: Model, layer: int, z: "Tensor") -> "Tensor":
    """head_out [token, head, d_model] from z [token, head, d_v] and the model's own W_O, float32.

    A served model sends tokens × heads × d_model × 4 bytes.
    """
    import torch

    with torch.no_grad():
        w = [model.weight(layer, "W_O", h)[0].float().cpu() for h in range(model.spec.heads)]
        return torch.stack([z[:, h].float() @ w[h].T for h in range(model.spec.heads)], 1)


@beside_the_model
def unembedding_rows(model: Model, ids: np.ndarray) -> "Tensor":
    """The rows of W_U for these token ids [token, d_model], float32."""
    import torch

    with torch.no_grad():
        return model.unembedding()[0][ids].float().cpu()


@beside_the_model
def gates(model: Model) -> np.ndarray:
    """The gates' rows [layer, expert, d_model] of the layers that are mixtures.

    Raises: SweepError: a layer doesn't show its gate.
    """
    if not all(model.serves(layer, "gate") for layer in model.spec.moe):
        raise SweepError(
            f"the gate of a {model.spec.family} model can't be read: leave routing out"
        )
    return np.stack([model.gate(layer).detach().double().cpu().numpy() for layer in model.spec.moe])
