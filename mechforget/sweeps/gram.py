"""Inner products of all pairs of prompts' gradients, for the weights of each head, matrix and
expert. For matrix products, the gradients themselves are never formed."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.models.beside import beside_the_model
from mechforget.models.cells import Cell, address, cells
from mechforget.models.protocol import Model
from mechforget.sweeps.shares import Key, cuts, is_lookup, is_product, plain_experts, within
from mechforget.sweeps.uses import Use, backward, floats

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from mechforget.tasks.encoded import Encoded

LARGEST = 2e9  # bytes of tokens' products, or of prompts' gradients, that are held at once


@beside_the_model
def gram(model: Model, encoded: "Encoded") -> dict[Key, np.ndarray]:
    """⟨∇m_i, ∇m_j⟩ for m = log_prob of prompts i and j, for each cell: {cell: [prompt, prompt]}.

    The gradient of a matrix product's weight is Σ_t g_t x_tᵀ over tokens, so the inner product of
    two prompts' gradients is Σ_ts (g_t · g_s)(x_t · x_s). A head uses its rows of g (for W_O, its
    columns of x), and an expert the tokens that chose it. For other modules (norms) the gradients
    are formed, one module at a time. Work that would take more than 2 GB is done in pieces.
    Source: the Gram matrix of a sum of outer products; cf. the ghost norm, Goodfellow 2015,
        1510.01799. Time: the square of the number of tokens.
    """
    return products(model, encoded, cells(model))


def products(
    model: Model, encoded: "Encoded", own: "Mapping[Parameter, list[Cell]]"
) -> dict[Key, np.ndarray]:
    """`gram`, for these cells only."""
    n = encoded.n_prompts
    found: dict[Key, Any] = defaultdict(lambda: np.zeros((n, n)))
    unembedded: dict[Parameter, Use] = {}

    def add(cell: Cell, value: np.ndarray) -> None:
        found[cell.part, cell.layer, cell.unit] += value

    def visit(use: Use) -> None:
        mine = {name: p for name, p in use.own.items() if p in own}
        if is_product(use.module):
            use = _read_only(use)
            one = _by_prompt(use, n)
            for name, p in mine.items():
                _product(use, name, own[p], one, add)
                if own[p][0].part == "embed":  # tied: its other use comes later
                    unembedded[p] = use
        elif is_lookup(use):
            for p in mine.values():
                _lookup(use, own[p][0], n, unembedded.get(p), add)
        elif mine:
            left = {name: own[p] for name, p in mine.items()}
            matrices = {k: v for k, v in left.items() if v[0].part == "expert" and mine[k].ndim > 2}
            if matrices and _experts(use, matrices, n, add):
                left = {k: v for k, v in left.items() if k not in matrices}
            if left:
                _made(use, left, n, add)

    backward(model, encoded, visit)
    return dict(found)


def _read_only(use: Use) -> Use:
    """The use without the tokens whose gradient is zero, such as padding."""
    keep = (use.g != 0).any(-1).nonzero().flatten()
    return Use(use.module, use.own, (use.x[keep],), {}, [use.g[keep]], use.prompt[keep])


def _by_prompt(use: Use, n: int) -> "Tensor":
    """[token, prompt]: 1 if the token belongs to the prompt, else 0."""
    one = use.g.new_zeros(len(use.prompt), n)
    one[range(len(use.prompt)), use.prompt] = 1
    return one


def _product(use: Use, name: str, cells: list[Cell], one: "Tensor", add: Any) -> None:
    x, g = use.x, use.g
    if name == "bias":
        summed = one.T @ g
        for cell in cells:
            rows = summed if cell.rows is None else summed[:, cell.rows]
            add(cell, (rows @ rows.T).double().cpu().numpy())
        return
    by_rows, indices = cuts(use, cells)
    whole, cut = (x, g) if by_rows else (g, x)
    for some in _some(whole):
        shared = whole[some] @ whole.T
        for cell, index in zip(cells, indices, strict=True):
            part = cut if index is None else cut[:, index]
            value = one[some].T @ (shared * (part[some] @ part.T)) @ one
            add(cell, value.double().cpu().numpy())


def _some(tokens: "Tensor") -> "Iterator[slice]":
    """Slices of the tokens, small enough for three [slice, token] products to fit in memory."""
    n = len(tokens)
    step = max(1, int(LARGEST / (3 * max(1, n) * tokens.element_size())))
    return (slice(start, start + step) for start in range(0, n, step))


def _lookup(use: Use, cell: Cell, n: int, other: Use | None, add: Any) -> None:
    """An embedding's rows. If the matrix is tied, `other` is its use as the unembedding, and the
    products of the two uses' gradients are added."""
    scale = getattr(use.module, "embed_scale", 1.0)  # Gemma's
    ids, g, one = use.x, use.g * scale, _by_prompt(use, n)
    for some in _some(g):
        same = (ids[some, None] == ids[None]).to(g)
        value = one[some].T @ (same * (g[some] @ g.T)) @ one
        if other is not None:
            cross = other.g[:, ids[some]].T * (g[some] @ other.x.T)  # [token, read]
            crossed = one[some].T @ cross @ _by_prompt(other, n)
            value = value + crossed + crossed.T
        add(cell, value.double().cpu().numpy())


def _experts(use: Use, cells: dict[str, list[Cell]], n: int, add: Any) -> bool:
    """Adds the matrices of experts, one expert at a time. Returns whether every product with them
    was seen; if not, nothing is added."""
    import torch

    hidden, index, weight, *others = use.args
    all_of, found = _by_prompt(use, n), []
    for each in zip(*cells.values(), strict=True):
        expert = each[0].unit
        token, slot = torch.where(index == expert)
        if not len(token):
            found.append((each[0], np.zeros((n, n))))
            continue
        chosen = index[token, slot, None], weight[token, slot, None]
        wanted = {address(use.own[name][expert]) for name in cells}
        with torch.enable_grad(), plain_experts(use.module), _products(wanted) as seen:
            y = use.module(hidden[token], *chosen, *others, **use.kwargs)
        if len(seen) != len(wanted):
            return False
        grads = torch.autograd.grad(y, [product for _, product in seen], use.g[token])
        one = all_of[token]
        for (x, _), g in zip(seen, grads, strict=True):
            for some in _some(x):
                value = one[some].T @ ((x[some] @ x.T) * (g[some] @ g.T)) @ one
                found.append((each[0], value.double().cpu().numpy()))
    for cell, value in found:
        add(cell, value)
    return True


@contextmanager
def _products(wanted: set[int]) -> "Iterator[list[tuple[Tensor, Tensor]]]":
    """Inside, collects (x, y) of every product y of x with a matrix at one of these addresses; y
    requires a gradient."""
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    seen: list[tuple[Tensor, Tensor]] = []
    products = ("linear", "matmul", "__matmul__", "mm")

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            y = func(*args, **(kwargs or {}))
            known = getattr(func, "__name__", "") in products and len(args) > 1
            if known and address(args[1]) in wanted:
                seen.append((args[0].detach(), y if y.requires_grad else y.requires_grad_()))
            return y

    with Watching():
        yield seen


def _made(use: Use, cells: dict[str, list[Cell]], n: int, add: Any) -> None:
    """Forms each prompt's gradient of the module's weights, and multiplies them."""
    import torch
    from torch.func import functional_call

    weights = {name: use.own[name].detach().requires_grad_() for name in cells}
    with torch.enable_grad(), plain_experts(use.module):
        output = floats(functional_call(use.module, weights, use.args, dict(use.kwargs)))
        pairs = [(y, g) for y, g in zip(output, use.grads, strict=True) if g is not None]
        outputs = [y.expand_as(g) for y, g in pairs]  # positions' may be one row for all
    by_key = {(c.part, c.layer, c.unit): c for places in cells.values() for c in places}

    def gradients(prompts: np.ndarray) -> "dict[Key, Tensor]":
        """The gradients of each cell, [prompt, weight]."""
        rows: dict[Key, list[list[Tensor]]] = {key: [[] for _ in prompts] for key in by_key}
        for i, prompt in enumerate(prompts):
            mine = (use.prompt == prompt).to(pairs[0][1].device)
            masked = [g * mine.view(*g.shape[:-1], 1) for _, g in pairs]
            made = torch.autograd.grad(outputs, list(weights.values()), masked, retain_graph=True)
            for places, gradient in zip(cells.values(), made, strict=True):
                for cell in places:
                    part = gradient[within(cell)].flatten()
                    rows[cell.part, cell.layer, cell.unit][i].append(part)
        return {
            key: torch.stack([torch.cat(parts) for parts in each]) for key, each in rows.items()
        }

    size = sum(w.nbytes for w in weights.values())
    several = min(n, int(2 * n * size / LARGEST) + 1)  # two are held at once
    blocks = np.array_split(np.arange(n), 1 if n * size <= LARGEST else several)
    for i, some in enumerate(blocks):
        a = gradients(some)
        for others in blocks[i:]:
            b = a if others is some else gradients(others)
            for key, cell in by_key.items():
                value = np.zeros((n, n))
                value[np.ix_(some, others)] = (a[key].double() @ b[key].double().T).cpu().numpy()
                add(cell, value if others is some else value + value.T)
