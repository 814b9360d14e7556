"""Tensors without values: what code that looks at values is told instead.

On the meta device a tensor is a shape and a dtype: any model fits, nothing is computed, and a
wrong shape still fails. Code that must know a value (is it 0? which experts were chosen?) can't run
there; these answers let it, and they are chosen so that the most is run: nothing equals anything,
one token is routed, to expert 0.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def _zero(t: Tensor, *_: Any, **__: Any) -> Any:
    return torch.zeros((), dtype=t.dtype).item()


def _on_cpu(t: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.zeros((), dtype=t.dtype).expand(t.shape)  # one value, seen at every place


def _one(t: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.zeros(1, dtype=t.dtype)


def _first_place(t: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.zeros(1, t.ndim, dtype=torch.long)


def _where(t: Tensor, *others: Any, **named: Any) -> Any:
    if others or named:
        return NotImplemented
    return tuple(torch.zeros(1, dtype=torch.long, device="meta") for _ in t.shape)


def _reduced(t: Tensor, *dims: Any, keepdim: bool = False, **named: Any) -> Any:
    if dims != (-1,) or named or not t.is_floating_point() or not t.is_contiguous():
        return NotImplemented
    return t.new_empty((*t.shape[:-1], 1) if keepdim else t.shape[:-1])


def _elementwise(t: Tensor, *others: Any, **named: Any) -> Any:
    every = (t, *(x for x in others if isinstance(x, Tensor)))
    if named or not all(x.is_meta and x.is_contiguous() for x in every):
        return NotImplemented
    if not all(x.is_floating_point() for x in every):
        return NotImplemented
    shape = torch.broadcast_shapes(*(x.shape for x in every))
    return t.new_empty(shape, dtype=torch.result_type(t, others[0]) if others else t.dtype)


def _never(*_: Any, **__: Any) -> bool:
    return False


ANSWERS: Mapping[Any, Callable[..., Any]] = {
    Tensor.item: _zero,
    Tensor.__bool__: _never,
    Tensor.equal: _never,
    torch.equal: _never,
    Tensor.cpu: _on_cpu,
    Tensor.unique: _one,
    Tensor.nonzero: _first_place,
    torch.nonzero: _first_place,
    torch.where: _where,
    # These could be left out: the meta device runs them in Python (0.2 ms, logsumexp 1.7), and they
    # are most of a forward pass. Where strides are not plain they are left to it.
    **dict.fromkeys((Tensor.add, Tensor.mul, Tensor.pow, torch.rsqrt), _elementwise),
    **dict.fromkeys((Tensor.mean, Tensor.logsumexp), _reduced),
}


class Placeholders(TorchFunctionMode):
    """Inside, questions to a meta tensor's values are answered from `ANSWERS`; where an answer is
    NotImplemented, torch does what it does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = ANSWERS.get(func)
        if answer is not None and args and isinstance(args[0], Tensor) and args[0].is_meta:
            found = answer(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return func(*args, **(kwargs or {}))
