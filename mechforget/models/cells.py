"""Which head, group, expert or layer each weight belongs to: every parameter is cut into cells."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mechforget.checkpoints.families import family
from mechforget.errors import SweepError
from mechforget.models.protocol import Model
from mechforget.models.sites import MATRICES, Spec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


@dataclass(frozen=True)
class Cell:
    """A part of a parameter that belongs to one owner: its rows and columns, or all of them where
    these are None.

    part: W_Q, W_O (unit: the query head), W_K, W_V (unit: the group), W_gate, W_in, W_out, mlp (the
    rest of an MLP), expert (unit: its number), router, other (a layer's norms, output biases, sinks
    and shared latents), embed, unembed, final (the last norm).
    """

    part: str
    layer: int | None
    unit: int | None = None
    rows: "Tensor | None" = None
    cols: "Tensor | None" = None


def cells(model: Model) -> "dict[Parameter, list[Cell]]":
    """The cells of each parameter; they cover it and do not overlap. A tied matrix counts as
    `embed`. A fused matrix whose parts are parameters too (as in TransformerLens) is left out,
    because no module uses it.

    Raises: SweepError: a head's weights are no part of any parameter; experts on a backend that
        doesn't show them.
    """
    memory = _Memory(model.module.parameters())
    found = _heads(model, memory)
    unembedding = address(model.unembedding()[0])
    owners = model.owners()
    for name, p in model.module.named_parameters():
        part, layer = owners[p]
        if p in found or memory.smallest(address(p)) is not p:
            continue
        if part == "mlp":
            found[p] = _mlp(name, p, layer, model.spec)
        elif layer is not None:
            found[p] = [Cell("other", layer)]
        elif p.dim() > 1 and any(word in name for word in ("embed", "wte", "wpe")):
            found[p] = [Cell("embed", None)]
        else:
            found[p] = [Cell("unembed" if address(p) == unembedding else "final", None)]
    return found


class _Memory:
    """Finds the parameter that a memory address lies in."""

    def __init__(self, parameters: "Iterable[Parameter]") -> None:
        held = [((a := address(p)), a + _extent(p), p.numel(), p) for p in parameters]
        self.held = sorted(held, key=lambda one: one[0])
        self.starts = [start for start, *_ in self.held]

    def smallest(self, at: int) -> "Parameter | None":
        """The smallest that holds it, of these the nearest: a part before the fused whole."""
        before = self.held[: bisect_right(self.starts, at)]
        near = [one for one in before[-4:] if at < one[1]]
        return min(near, key=lambda one: (one[2], -one[0]), default=(None,))[-1]


def address(t: "Tensor") -> int:
    """Of its first value; on the meta device, where nothing has one, as if each storage had its
    own stretch of memory."""
    if t.device.type != "meta":
        return t.data_ptr()
    return (t.untyped_storage()._cdata << 64) + t.storage_offset() * t.element_size()


def _extent(p: "Tensor") -> int:
    """The number of bytes from the first value of a tensor to the end of its last."""
    steps = sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True))
    return (steps + 1) * p.element_size()


def _heads(model: Model, memory: _Memory) -> "dict[Parameter, list[Cell]]":
    """`Model.weight` returns views: their addresses and strides say where they lie."""
    found: dict[Parameter, list[Cell]] = defaultdict(list)
    for layer in range(model.spec.layers):
        for matrix in (m for m in MATRICES if m in model.spec.sites):
            for unit in range(model.spec.units(matrix)):
                for view in model.weight(layer, matrix, unit):
                    if view is None:
                        continue
                    p = memory.smallest(address(view))
                    if p is None:
                        raise SweepError(
                            f"L{layer} {matrix}: a head's weights are made as the model runs (an "
                            "adapter that is worn): merge it to take its weights apart"
                        )
                    found[p].append(Cell(matrix, layer, unit, *_place(view, p)))
    return found


def _place(view: "Tensor", p: "Parameter") -> "tuple[Tensor, Tensor | None]":
    """(rows, cols) of a parameter that a view of it shows; of a vector the rows alone."""
    import torch

    start = (address(view) - address(p)) // p.element_size()
    shape, stride, whole = view.shape, view.stride(), p.stride()
    if len(whole) == 1:
        return torch.from_numpy(start + np.arange(shape[0]) * stride[0]), None
    wide = max(whole)
    along = 1 if stride[1] == 1 else 0  # the view's axis of neighbouring values
    far = torch.from_numpy((start + np.arange(shape[1 - along]) * stride[1 - along]) // wide)
    near = torch.from_numpy(start % wide + np.arange(shape[along]))
    return (far, near) if whole[1] == 1 else (near, far)


def _mlp(name: str, p: "Parameter", layer: int | None, spec: Spec) -> list[Cell]:
    import torch

    path, experts, row = name.split("."), spec.experts, family(spec.family)
    if p.dim() > 2 and not experts:
        raise SweepError("experts' weights can't be told apart on this backend: use nnsight")
    if experts and p.shape[0] == experts:
        if "experts" in path:
            return [Cell("expert", layer, e, torch.tensor([e])) for e in range(experts)]
        return [Cell("router", layer)]
    if row.gate_and_in in path:
        gate, up = torch.arange(p.shape[0]).chunk(2)
        return [Cell("W_gate", layer, None, gate), Cell("W_in", layer, None, up)]
    for word in reversed(path):
        for part in ("W_gate", "W_in", "W_out"):
            if word in getattr(row, part):
                return [Cell(part, layer)]
    return [Cell("mlp", layer)]
