"""Every prompt's gradient against every other's, by whose weights they are, without making one."""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.models.beside import beside_the_model
from mechforget.models.cells import Cell, cells
from mechforget.models.protocol import Model
from mechforget.sweeps.shares import Key, cuts, is_lookup, is_product, plain_experts
from mechforget.sweeps.uses import Use, backward, floats

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from mechforget.tasks.encoded import Encoded

LARGEST = 2e9  # bytes of all prompts' gradients of one module that isn't a matrix product


@beside_the_model
def gram(model: Model, encoded: "Encoded") -> dict[Key, np.ndarray]:
    """⟨∇m_i, ∇m_j⟩ for m = log_prob of prompts i and j, of each cell: {cell: [prompt, prompt]}.

    A matrix product's gradient is Σ_t g_t x_tᵀ over tokens, so that of two prompts' the dot product
    is Σ_ts (g_t · g_s)(x_t · x_s): a head's takes its rows of g (of W_O: its columns of x). Other
    modules' gradients (norms, experts) are made, one module at a time; where those of all prompts
    would take more than 2 GB, the cell is left out.
    Source: the Gram matrix of a sum of outer products; cf. the ghost norm, Goodfellow 2015,
        1510.01799. Memory: the square of the number of tokens.
    """
    return products(model, encoded, cells(model))


def products(
    model: Model, encoded: "Encoded", own: "Mapping[Parameter, list[Cell]]"
) -> dict[Key, np.ndarray]:
    """`gram` of these cells alone."""
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
        elif is_lookup(use.module):
            for p in mine.values():
                _lookup(use, own[p][0], n, unembedded.get(p), add)
        elif mine:
            _made(use, {name: own[p] for name, p in mine.items()}, n, add)

    backward(model, encoded, visit)
    return dict(found)


def _read_only(use: Use) -> Use:
    """Without the tokens whose gradient is zero: padding, and what nothing depends on."""
    keep = (use.g != 0).any(-1).nonzero().flatten()
    return Use(use.module, use.own, (use.x[keep],), {}, [use.g[keep]], use.prompt[keep])


def _by_prompt(use: Use, n: int) -> "Tensor":
    """[token, prompt]: 1 where the token is the prompt's."""
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
    shared = whole @ whole.T
    for cell, index in zip(cells, indices, strict=True):
        part = cut if index is None else cut[:, index]
        add(cell, (one.T @ (shared * (part @ part.T)) @ one).double().cpu().numpy())


def _lookup(use: Use, cell: Cell, n: int, other: Use | None, add: Any) -> None:
    """An embedding's rows; of a tied matrix the unembedding's gradient too, and both crossed."""
    scale = getattr(use.module, "embed_scale", 1.0)  # Gemma's
    ids, g, one = use.x, use.g * scale, _by_prompt(use, n)
    same = (ids[:, None] == ids[None]).to(g)
    value = one.T @ (same * (g @ g.T)) @ one
    if other is not None:
        cross = other.g[:, ids].T * (g @ other.x.T)  # [token, read]
        crossed = one.T @ cross @ _by_prompt(other, n)
        value = value + crossed + crossed.T
    add(cell, value.double().cpu().numpy())


def _made(use: Use, cells: dict[str, list[Cell]], n: int, add: Any) -> None:
    """Each prompt's gradient of the module's weights, then their products."""
    import torch
    from torch.func import functional_call

    weights = {name: use.own[name].detach().requires_grad_() for name in cells}
    if n * sum(w.nbytes for w in weights.values()) > LARGEST:
        return
    with torch.enable_grad(), plain_experts(use.module):
        output = floats(functional_call(use.module, weights, use.args, dict(use.kwargs)))
    pairs = [(y, g) for y, g in zip(output, use.grads, strict=True) if g is not None]
    rows: dict[Key, list[list[Tensor]]] = defaultdict(lambda: [[] for _ in range(n)])
    by_key = {}
    for prompt in range(n):
        mine = (use.prompt == prompt).to(pairs[0][1].device)
        masked = [g * mine.view(*g.shape[:-1], 1) for _, g in pairs]
        made = torch.autograd.grad(
            [y for y, _ in pairs], list(weights.values()), masked, retain_graph=True
        )
        for (_, places), gradient in zip(cells.items(), made, strict=True):
            for cell in places:
                key = (cell.part, cell.layer, cell.unit)
                by_key[key] = cell
                part = gradient if cell.rows is None else gradient[cell.rows]
                rows[key][prompt].append(part.flatten())
    for key, each in rows.items():
        matrix = torch.stack([torch.cat(parts) for parts in each]).double()
        add(by_key[key], (matrix @ matrix.T).cpu().numpy())
