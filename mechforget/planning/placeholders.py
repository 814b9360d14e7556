"""Tensors without values, and the answers that code gets when it asks for a value.

On the meta device a tensor is only a shape and a dtype: any model fits, nothing is computed, and a
wrong shape still fails. Code that must know a value (is it 0? which experts were chosen?) cannot
run there. The answers here let it run, and they are chosen so that as much as possible is run:
nothing equals anything, something is not 0, and one token is routed, to expert 0.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode


def _zero(t: Tensor, *_: Any, **__: Any) -> Any:
    return torch.zeros((), dtype=t.dtype).item()


def _on_cpu(t: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.zeros((), dtype=t.dtype).expand(t.shape)  # one value, seen at every place


def _one(t: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.zeros(1, dtype=t.dtype)


def _first_place(t: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.zeros(1, t.ndim, dtype=torch.long)


def _some(t: Tensor, *dims: Any, **named: Any) -> Any:
    return NotImplemented if dims or named else torch.ones((), dtype=torch.bool)


def _where(t: Tensor, *others: Any, **named: Any) -> Any:
    if others or named:
        return NotImplemented
    return tuple(torch.zeros(1, dtype=torch.long, device="meta") for _ in t.shape)


def _reduced(t: Tensor, *dims: Any, keepdim: bool = False, **named: Any) -> Any:
    if dims != (-1,) or named or not t.is_floating_point() or not t.is_contiguous():
        return NotImplemented
    return _Made.apply((*t.shape[:-1], 1) if keepdim else t.shape[:-1], t.dtype, t)


def _elementwise(t: Tensor, *others: Any, **named: Any) -> Any:
    every = (t, *(x for x in others if isinstance(x, Tensor)))
    if named or not all(x.is_meta and x.is_contiguous() for x in every):
        return NotImplemented
    if not all(x.is_floating_point() for x in every):
        return NotImplemented
    shape = torch.broadcast_shapes(*(x.shape for x in every))
    dtype = torch.result_type(t, others[0]) if others else t.dtype
    return _Made.apply(shape, dtype, *every)


class _Made(torch.autograd.Function):
    """A tensor of this shape that depends on others."""

    @staticmethod
    def forward(ctx: Any, shape: Any, dtype: torch.dtype, *of: Tensor) -> Any:
        ctx.of, ctx.made = [(t.shape, t.dtype) for t in of], (shape, dtype)
        return of[0].new_empty(shape, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return None, None, *(g.new_empty(shape, dtype=dtype) for shape, dtype in ctx.of)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        shape, dtype = ctx.made
        return torch.empty(shape, dtype=dtype, device="meta")


def _backward(tensors: Any, *_: Any, **__: Any) -> None:
    """torch leaves a function mode for as long as it runs, and hooks then ask real questions: so
    its last line is called here, with the mode entered again."""
    ones = tuple(torch.ones_like(t) for t in tensors)
    _engine_run_backward(
        tensors, ones, False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _never(*_: Any, **__: Any) -> bool:
    return False


ANSWERS: Mapping[Any, Callable[..., Any]] = {
    Tensor.item: _zero,
    Tensor.__bool__: _never,
    Tensor.equal: _never,
    torch.equal: _never,
    Tensor.any: _some,
    Tensor.cpu: _on_cpu,
    Tensor.unique: _one,
    Tensor.nonzero: _first_place,
    torch.nonzero: _first_place,
    torch.where: _where,
    torch.autograd.backward: _backward,
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
        first = args[0] if args else None
        if answer is _backward:
            with self:
                return _backward(*args)
        if answer is not None and isinstance(first, Tensor) and first.is_meta:
            found = answer(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return func(*args, **(kwargs or {}))
