"""The curvature of the loss at a checkpoint: products with its Hessian and Gauss-Newton matrix.

L(θ) is the mean over prompts of −Σ log p of the right answer's tokens, nats. θ are the weights of
some parts; the others are held fixed. The graph of L and of its gradient is built once and kept, so
a product costs one backward pass through both and no forward pass (Pearlmutter 1994,
doi:10.1162/neco.1994.6.1.147). In a mixture of experts the routing is held fixed, because a choice
of experts has no derivative.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget import progress
from mechforget.errors import SweepError
from mechforget.models.beside import beside_the_model
from mechforget.models.protocol import Model
from mechforget.sweeps.gradients import PartOfLayer, requiring
from mechforget.tasks.tree import groups, lone

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from mechforget.tasks.encoded import Encoded

Product = Callable[["Tensor"], "Tensor"]  # v [weight] -> M v
BASIS = 20  # vectors that Lanczos keeps, where memory holds them; fewer take more products
WORK = 5  # vectors more that ARPACK works in


@dataclass(frozen=True)
class Eigenvalues:
    """The (algebraically) largest eigenvalues, descending; NaN where Lanczos didn't converge."""

    value: np.ndarray  # [rank], nats per squared unit of weight
    residual: np.ndarray  # [rank], ‖H q − λ q‖: there is an eigenvalue this close to λ
    products: int


@beside_the_model
def eigenvalues(
    model: Model,
    encoded: "Encoded",
    parts: Sequence[PartOfLayer],
    *,
    top: int = 1,
    tolerance: float = 0.01,
    products: int = 100,
    memory: float = 5.0,
    seed: int = 0,
) -> Eigenvalues:
    """The Hessian's largest eigenvalues by Lanczos (scipy.sparse.linalg.eigsh).

    Args: tolerance: of the residual, relative to the eigenvalue; the eigenvalue's error is
        proportional to its square. products: the largest number of products, about. memory: GB for
        the vectors that Lanczos keeps.
    Raises: SweepError: the smallest possible number of vectors doesn't fit, or a server has no
        scipy; and what `require_curvature` raises.
    """
    import torch

    if top == 0:
        return Eigenvalues(np.empty(0), np.empty(0), 0)
    try:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
    except ImportError as error:
        raise SweepError(
            "this server has no scipy, which Lanczos needs: install it there, or ask for traces "
            "alone (top=0)"
        ) from error

    with (
        hessian(model, encoded, parts) as (product, held),
        progress.bar("top eigenvalues", products, unit="products") as advance,
    ):
        n, like = sum(p.numel() for p in held), held[0]
        each = n * like.element_size() / 1e9
        basis = min(n, max(2 * top + 1, BASIS), int(memory / each) - WORK)
        if basis < top + 2:
            raise SweepError(
                f"top {top} of {n:,} weights: Lanczos takes {top + 2 + WORK} vectors of them, "
                f"{(top + 2 + WORK) * each:.1f} GB, more than {memory:g}: want fewer parts, "
                "fewer eigenvalues or more memory"
            )
        made = 0

        def matvec(v: np.ndarray) -> np.ndarray:
            nonlocal made
            made += 1
            advance(1)
            return product(torch.as_tensor(v.ravel()).to(like)).cpu().numpy()

        start = torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(like.dtype).numpy()
        operator = LinearOperator((n, n), matvec=matvec, dtype=start.dtype)  # type: ignore[call-arg]
        restarts = max(1, products // (basis - top))
        settings: dict[str, Any] = dict(ncv=basis, tol=tolerance, maxiter=restarts, v0=start)
        try:
            value, vector = eigsh(operator, top, which="LA", **settings)
        except ArpackNoConvergence as stopped:
            value, vector = stopped.eigenvalues, stopped.eigenvectors
        order = np.argsort(value)[::-1]
        found = np.full((2, top), np.nan)
        for rank, i in enumerate(order):
            q = vector[:, i]
            found[:, rank] = value[i], np.linalg.norm(matvec(q) - value[i] * q)
    return Eigenvalues(found[0], found[1], made)


@beside_the_model
def traces(
    model: Model, encoded: "Encoded", parts: Sequence[PartOfLayer], *, probes: int, seed: int = 0
) -> np.ndarray:
    """Hutchinson's estimate z · H z of the Hessian's trace, for each part; z are Rademacher probes.

    Returns: [part, probe] z_i · (H z)_i, nats per squared unit of weight. A part's mean over probes
        is an unbiased estimate of the trace of its block, and the sum over parts of the whole's.
    Source: Hutchinson 1990, doi:10.1080/03610919008812866.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with (
        hessian(model, encoded, parts) as (product, held),
        progress.bar("Hessian's trace", probes, unit="probes") as advance,
    ):
        sizes = [sum(p.numel() for p in model.parameters(*part)) for part in parts]
        found = np.empty((len(parts), probes))
        for probe in range(probes):
            z = _rademacher(held, generator)
            each = z.mul_(product(z))  # in place, which saves a vector
            found[:, probe] = [part.sum(dtype=torch.float64).item() for part in each.split(sizes)]
            advance(1)
    return found


@beside_the_model
def gauss_newton_trace(
    model: Model, encoded: "Encoded", parts: Sequence[PartOfLayer], *, products: int, seed: int = 0
) -> tuple[float, np.ndarray]:
    """Hutch++ for the trace of the Gauss-Newton matrix G, the mean over prompts of
    Jᵀ (∂²l/∂logits²) J.

    A third of the products finds a basis Q that spans most of G, a third gives the trace of Qᵀ G Q
    exactly, and a third estimates the rest, (I − QQᵀ) G (I − QQᵀ), by Hutchinson's method.
    Returns: (the trace within Q, [probe] samples of the rest). The estimate is the first plus the
        mean of the second; only the second has an error.
    Source: Meyer et al. 2021, 2010.09649.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    third = max(1, products // 3)
    with (
        gauss_newton(model, encoded, parts) as (product, held),
        progress.bar("Gauss-Newton trace", 3 * third, unit="products") as advance,
    ):

        def step(v: "Tensor") -> "Tensor":
            advance(1)
            return product(v)

        basis: list[Tensor] = []
        for _ in range(third):
            _join(basis, step(_rademacher(held, generator)))
        within = sum(torch.dot(q, step(q)).item() for q in basis)
        left = np.empty(third)
        for probe in range(third):
            z = _rademacher(held, generator)
            for q in basis:
                z -= torch.dot(q, z) * q
            left[probe] = torch.dot(z, step(z)).item()
    return within, left


@contextmanager
def hessian(
    model: Model, encoded: "Encoded", parts: Sequence[PartOfLayer]
) -> "Iterator[tuple[Product, list[Parameter]]]":
    """Products with ∂²L/∂θ², and the parameters that θ consists of, in order."""
    import torch

    with _read(model, encoded, parts) as (logits, target, held):
        loss = -logits.log_softmax(-1)[range(len(target)), target].sum() / encoded.n_prompts
        gradient = torch.autograd.grad(loss, held, create_graph=True, allow_unused=True)
        curved = [i for i, g in enumerate(gradient) if g is not None and g.requires_grad]

        def product(v: "Tensor") -> "Tensor":
            along = _split(v, held)
            found = torch.autograd.grad(
                [gradient[i] for i in curved],
                held,
                [along[i] for i in curved],
                retain_graph=True,
                allow_unused=True,
            )
            return _flat(found, held)

        yield product, held


@contextmanager
def gauss_newton(
    model: Model, encoded: "Encoded", parts: Sequence[PartOfLayer]
) -> "Iterator[tuple[Product, list[Parameter]]]":
    """Products with the mean over prompts of Jᵀ (∂²loss/∂logits²) J, and the parameters.

    J v is computed with two backward passes: uᵀJ is linear in u, and (uᵀJ) v has the derivative
    J v with respect to u.
    Source: Schraudolph 2002, doi:10.1162/08997660260028683.
    """
    import torch

    with _read(model, encoded, parts) as (logits, _, held):
        p = logits.detach().softmax(-1)
        u = torch.zeros_like(logits, requires_grad=True)
        back = torch.autograd.grad(logits, held, u, create_graph=True, allow_unused=True)
        used = [i for i, g in enumerate(back) if g is not None]

        def product(v: "Tensor") -> "Tensor":
            along = _split(v, held)
            (forward,) = torch.autograd.grad(
                [back[i] for i in used], u, [along[i] for i in used], retain_graph=True
            )
            bent = p * (forward - (p * forward).sum(-1, keepdim=True)) / encoded.n_prompts
            found = torch.autograd.grad(logits, held, bent, retain_graph=True, allow_unused=True)
            return _flat(found, held)

        yield product, held


def require_curvature(model: Model) -> None:
    """Checks, before anything is run, that this model's loss can be differentiated twice.

    Raises: SweepError: its weights are on the disk or in half precision, or its attention has no
        second derivative.
    """
    import torch

    held = list(model.module.parameters())
    if not model.spec.resident:
        raise SweepError(
            "weights on the disk have no second derivative: use a device that holds them, or leave "
            "the loss landscape out"
        )
    half_precision = {p.dtype for p in held} & {torch.float16, torch.bfloat16}
    if half_precision:
        raise SweepError(
            f"the loss landscape in {str(half_precision.pop())[6:]} would be mostly rounding "
            "errors: use float32"
        )
    config: Any = getattr(model, "config", None) or model.module.config
    if (kind := getattr(config, "_attn_implementation", "eager")) != "eager":
        raise SweepError(f"{kind} attention has no second derivative: load the model with eager")


@contextmanager
def _read(
    model: Model, encoded: "Encoded", parts: Sequence[PartOfLayer]
) -> "Iterator[tuple[Tensor, Tensor, list[Parameter]]]":
    """Logits [read, vocabulary] where the right answers' tokens are read, these tokens, and the
    parameters."""
    import torch

    require_curvature(model)
    held = [p for part in parts for p in model.parameters(*part)]
    if not held or len({id(p) for p in held}) != len(held):
        raise SweepError(f"parts {list(parts)}: want at least one weight, and each of them once")
    right = ~encoded.read_wrong
    rows, row = np.unique(encoded.read_row[right], return_inverse=True)
    ids, length, spec = encoded.ids[rows], encoded.length[rows], model.spec
    each = np.arange(len(rows))
    every = groups([ids], length, each, **spec.packing)
    order, tree = lone(ids, length, every)
    row = np.argsort(order)[row]
    at = tree.row[row], tree.node[row, encoded.read_position[right]]
    with torch.enable_grad(), requiring(model, held):
        fed = torch.as_tensor(tree.fill(ids[order]), device=model.device)
        last = {(model.spec.layers, "unembed"): lambda t: t[at][None]}
        logits = model.run(fed, last, tree.linked)[0]
        target = torch.as_tensor(encoded.read_target[right], device=logits.device)
        yield logits, target, held


def _rademacher(held: "Sequence[Parameter]", generator: Any) -> "Tensor":
    """±1 for every weight; one seed gives the same signs on any device."""
    import torch

    n = sum(p.numel() for p in held)
    signs = torch.randint(0, 2, (n,), generator=generator, dtype=torch.int8)
    return signs.to(held[0]).mul_(2).sub_(1)


def _join(basis: "list[Tensor]", v: "Tensor") -> None:
    """Adds v to an orthonormal basis by Gram-Schmidt, run twice against rounding errors. A v that
    lies in the basis's span isn't added."""
    before = v.norm()
    for _ in range(2):
        for q in basis:
            v -= (q @ v) * q
    if v.norm() > 1e-5 * before:
        basis.append(v.div_(v.norm()))


def _split(v: "Tensor", held: "Sequence[Parameter]") -> "list[Tensor]":
    pieces = v.split([p.numel() for p in held])
    return [piece.view(p.shape).to(p.device) for piece, p in zip(pieces, held, strict=True)]


def _flat(found: "Sequence[Tensor | None]", held: "Sequence[Parameter]") -> "Tensor":
    """One vector; parameters without a gradient are 0 in it."""
    out = held[0].new_zeros(sum(p.numel() for p in held))
    pieces = out.split([p.numel() for p in held])
    for piece, g in zip(pieces, found, strict=True):
        if g is not None:
            piece.copy_(g.flatten())
    return out
