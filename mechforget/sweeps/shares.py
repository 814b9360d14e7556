"""The directional derivative of a metric along a step in weight space, shared out to the weights
of each head, matrix and expert."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.checkpoints.families import keeps_in_out
from mechforget.models.cells import Cell
from mechforget.models.protocol import Model, Point, Rewrite
from mechforget.sweeps.uses import HeadOutput, Use, backward

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from mechforget.tasks.encoded import Encoded

Key = tuple[str, int | None, int | None]  # part, layer, unit
Cells = Mapping["Parameter", list[Cell]]


def shares(
    model: Model,
    encoded: "Encoded",
    step: "Mapping[Parameter, Tensor]",
    cells: Cells,
    *,
    of: HeadOutput | None = None,
    rewrites: Mapping[Point, Rewrite] = {},
) -> "tuple[dict[Key, np.ndarray], np.ndarray]":
    """∇log_prob(prompt) · step for each cell, {cell: [prompt]}, nats per unit of step; and log_prob
    [prompt].

    Args: step: parameter -> its change; parameters that don't change may be left out. cells: whose
        each parameter is. of: differentiate what this head writes in place of log_prob.
    The share of a matrix product y = W x is g · (ΔW x), summed over tokens, where g is the gradient
    with respect to y. That is one more matrix product, whose rows or columns belong to heads. Other
    modules (norms, experts) are differentiated in forward mode along the step. The gradient of a
    weight is never formed.
    """
    found: dict[Key, Any] = defaultdict(float)

    def add(cell: Cell, use: Use, value: "Tensor") -> None:
        total = value.new_zeros(encoded.n_prompts, dtype=value.double().dtype)
        total.index_add_(0, use.prompt.to(value.device), value.double())
        found[cell.part, cell.layer, cell.unit] += total.cpu().numpy()

    def visit(use: Use) -> None:
        moved = {n: p for n, p in use.own.items() if p in step and p in cells}
        if of is not None and _writes(use, of.layer, cells):
            moved.pop("bias", None)  # no head's
        if not moved:
            return
        if is_product(use.module):
            for name, p in moved.items():
                _product(use, name, step[p], cells[p], add)
        elif is_lookup(use):
            for p in moved.values():
                scale = getattr(use.module, "embed_scale", 1.0)  # Gemma's
                add(cells[p][0], use, (use.g * step[p][use.x] * scale).sum(-1))
        else:
            _forward(use, {n: step[p] for n, p in moved.items()}, cells, add)

    value = backward(model, encoded, visit, of=of, rewrites=rewrites)
    return dict(found), value


def _writes(use: Use, layer: int, cells: Cells) -> bool:
    """Whether the module is this layer's W_O."""
    first = (cells[p][0] for p in use.own.values() if p in cells)
    return any((cell.part, cell.layer) == ("W_O", layer) for cell in first)


def is_product(module: Any) -> bool:
    """Whether the module computes x W + b and nothing else. Subclasses of Linear that compute
    something else (routers, quantised layers) don't count."""
    from torch import nn

    kind = type(module)
    plain = isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward
    return plain or kind.__name__ in ("Linear", "Conv1D", "FalconLinear")


def cuts(use: Use, cells: list[Cell]) -> "tuple[bool, list[Tensor | None]]":
    """Whether the cells of a matrix product divide its output (if not, its input), and the indices
    of each cell there; None: all of them."""
    ends = [(c.cols, c.rows) if keeps_in_out(use.module) else (c.rows, c.cols) for c in cells]
    by_rows = all(into is None or len(into) == use.x.shape[1] for _, into in ends)
    return by_rows, [out if by_rows else into for out, into in ends]


def is_lookup(use: Use) -> bool:
    """Whether the module looks up rows of its weight by ids. OPT's position embedding doesn't, as
    it is called with a mask."""
    from torch import nn

    module = use.module
    plain = type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
    return isinstance(module, nn.Embedding) and plain and not use.first.is_floating_point()


def within(cell: Cell) -> Any:
    """The index of a cell's values in its parameter."""
    if cell.rows is None:
        return slice(None) if cell.cols is None else (slice(None), cell.cols)
    return cell.rows if cell.cols is None else (cell.rows[:, None], cell.cols)


def _product(use: Use, name: str, step: "Tensor", cells: list[Cell], add: Any) -> None:
    """A linear layer's weight or bias: [token] for each of its cells."""
    x, g = use.x, use.g
    if name == "bias":
        values = g * step
        for cell in cells:
            add(cell, use, (values if cell.rows is None else values[:, cell.rows]).sum(-1))
        return
    if keeps_in_out(use.module):
        step = step.T
    by_rows, indices = cuts(use, cells)
    values = g * (x @ step.T) if by_rows else (g @ step) * x
    for cell, index in zip(cells, indices, strict=True):
        add(cell, use, (values if index is None else values[:, index]).sum(-1))


def _forward(use: Use, step: "dict[str, Tensor]", cells: Cells, add: Any) -> None:
    """g · (d output / d step) of any other module, one cell at a time."""
    import torch

    by_cell: dict[Key, tuple[Cell, list[tuple[str, Cell]]]] = {}
    for name in step:
        for cell in cells[use.own[name]]:
            key = (cell.part, cell.layer, cell.unit)
            by_cell.setdefault(key, (cell, []))[1].append((name, cell))
    for cell, places in by_cell.values():
        tangent = {n: _only(step[n], place) for n, place in places}
        if not any(t.any() for t in tangent.values()):
            add(cell, use, torch.zeros(len(use.prompt)))
            continue
        chosen = routed_to(use, cell)
        args = use.args if chosen is None else tuple(a[chosen] for a in use.args)
        change = _pushed(use, tangent, args)
        value = 0
        for g, dy in zip(use.grads, change, strict=True):
            if g is not None and dy is not None:
                if chosen is None:
                    dy = dy.expand_as(g)  # positions may have one row for all
                dy, g = dy.flatten(0, -2), g.flatten(0, -2)
                value = value + ((g if chosen is None else g[chosen]) * dy).sum(-1)
        if chosen is None:
            add(cell, use, value)
        else:
            whole = use.g.new_zeros(len(use.g))
            whole[chosen] = value
            add(cell, use, whole)


def _only(step: "Tensor", cell: Cell) -> "Tensor":
    if cell.rows is None and cell.cols is None:
        return step
    kept, place = step.new_zeros(step.shape), within(cell)
    kept[place] = step[place]
    return kept


def routed_to(use: Use, cell: Cell) -> "Tensor | None":
    """The tokens that chose the cell's expert; None if the cell isn't an expert's. Experts are
    called with (hidden, chosen experts, weights)."""
    if cell.part != "expert":
        return None
    return (use.args[1] == cell.unit).any(-1).nonzero().flatten()


def _pushed(use: Use, step: "dict[str, Tensor]", args: tuple[Any, ...]) -> "list[Tensor | None]":
    """The derivatives of the module's float outputs as its own weights move along the step."""
    import torch.autograd.forward_ad as forward_ad
    from torch.func import functional_call

    from mechforget.sweeps.uses import floats

    own = use.own
    with forward_ad.dual_level(), plain_experts(use.module):
        dual = {n: forward_ad.make_dual(own[n].detach(), t.to(own[n])) for n, t in step.items()}
        output = functional_call(use.module, dual, args, dict(use.kwargs))
        return [forward_ad.unpack_dual(t).tangent for t in floats(output)]


@contextmanager
def plain_experts(module: Any) -> Iterator[None]:
    """Inside, experts are computed one by one: the grouped matrix products of transformers' faster
    implementations have no forward-mode derivative."""
    config = getattr(module, "config", None)
    fast = getattr(config, "_experts_implementation", None)
    if fast is None:
        yield
        return
    config._experts_implementation = "eager"  # type: ignore[union-attr]  # transformers' own name
    try:
        yield
    finally:
        config._experts_implementation = fast  # type: ignore[union-attr]
