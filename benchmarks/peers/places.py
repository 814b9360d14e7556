"""Where a Hugging Face model keeps its layers, heads and last norm: Llama's and GPT-2's layout."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """The input or output of a module, of which a unit owns `width` columns from `start` on."""

    module: Any
    is_input: bool
    start: int
    width: int

    def columns(self, unit: int) -> slice:
        return slice(self.start + unit * self.width, self.start + (unit + 1) * self.width)

    def hook(self, fn: Callable[[Tensor], Tensor | None]) -> Any:
        """fn sees the value, and may return another one."""
        if self.is_input:
            return self.module.register_forward_pre_hook(lambda m, args: _wrapped(fn(args[0])))
        return self.module.register_forward_hook(lambda m, args, out: fn(out))


def _wrapped(value: Tensor | None) -> tuple[Tensor] | None:
    return None if value is None else (value,)


def is_gpt2(model: Any) -> bool:
    return model.config.model_type == "gpt2"


def layers(model: Any) -> Any:
    return model.transformer.h if is_gpt2(model) else model.model.layers


def body(model: Any) -> Any:
    """Everything but the unembedding."""
    return model.transformer if is_gpt2(model) else model.model


def last_norm(model: Any) -> Any:
    return model.transformer.ln_f if is_gpt2(model) else model.model.norm


def place(model: Any, layer: int, site: str) -> Place:
    """site: z, q, k or v."""
    block, c = layers(model)[layer], model.config
    d = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    if is_gpt2(model):
        if site == "z":
            return Place(block.attn.c_proj, True, 0, d)
        return Place(block.attn.c_attn, False, "qkv".index(site) * c.hidden_size, d)
    attention = block.self_attn
    if site == "z":
        return Place(attention.o_proj, True, 0, d)
    return Place(getattr(attention, f"{site}_proj"), False, 0, d)


def w_o(model: Any, layer: int, head: int) -> Tensor:
    """A head's part of W_O [d_head, d_model]."""
    at = place(model, layer, "z")
    weight = at.module.weight if is_gpt2(model) else at.module.weight.T
    return weight[at.columns(head)]


def projections(model: Any, layer: int, head: int) -> list[tuple[Any, tuple[Any, ...]]]:
    """The parameters that hold a head's W_Q and W_O, with the index of its part: W_Q's weight (and
    bias) first, W_O's weight last."""
    q, o = place(model, layer, "q"), place(model, layer, "z")
    rows, columns = q.columns(head), o.columns(head)
    found = [(q.module.weight, (slice(None), rows) if is_gpt2(model) else (rows,))]
    if q.module.bias is not None:
        found.append((q.module.bias, (rows,)))
    return [*found, (o.module.weight, (columns,) if is_gpt2(model) else (slice(None), columns))]


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def log_prob(model: Any, hidden: Tensor, target: Tensor) -> Tensor:
    """log p of the targets, from the last norm's output where they are read [..., read, d]."""
    logits = model.lm_head(hidden).float()
    index = target.expand(*logits.shape[:-1])[..., None]
    return logits.log_softmax(-1).gather(-1, index)[..., 0]


def both_directions(peer: Any, layers: Sequence[int]) -> np.ndarray:
    """Effects [metric, direction, layer, unit, prompt]; restore is post with pre's values.

    peer: has `base`, the models' own log p [read], and `layer(recipient, layer)`, [unit, read].
    """
    found = []
    for recipient, sign in ((1, 1), (0, -1)):
        values = torch.stack([peer.layer(recipient, layer) for layer in layers])
        effect = sign * (values - peer.base[recipient])
        found.append(peer.sequences.metrics(effect.double().cpu().numpy()))
    return np.stack(found, 1)


def tensors(sequences: Any, device: Any) -> tuple[Tensor, ...]:
    """ids [row, position], and row, position and target [read]."""
    names = ("ids", "row", "position", "target")
    return tuple(torch.as_tensor(getattr(sequences, name), device=device) for name in names)
