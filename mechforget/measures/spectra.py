"""The spectrum of one matrix: singular values, ranks, and the overlap of singular subspaces."""

from dataclasses import dataclass

import numpy as np

from mechforget.shapes import Array, Float


@dataclass(frozen=True)
class Spectrum:
    """σ, descending, and the first k left and right singular vectors in columns."""

    values: Float[Array, " short"]
    left: Float[Array, "rows k"]
    right: Float[Array, "columns k"]


def spectrum(w: Float[Array, "rows columns"], k: int) -> Spectrum:
    """Of a matrix, by the eigenvectors of the smaller Gram matrix, in float64.

    A σ below √(8 n ε) σ_1, n the longer side, is taken as 0 (3e-6 of the largest at n = 4096): that
    is what squaring can't tell from rounding.
    """
    import scipy.linalg

    tall = w.shape[0] >= w.shape[1]
    short = min(w.shape)
    gram, step = np.zeros((short, short)), max(1, (1 << 24) // short)
    long = w if tall else w.T  # [long, short]
    for start in range(0, len(long), step):
        some = long[start : start + step].astype(np.float64)
        gram += some.T @ some
    squares, vectors = scipy.linalg.eigh(gram, overwrite_a=True, check_finite=False)
    squares, vectors = squares[::-1].clip(0), vectors[:, ::-1]
    floor = squares[0] * 8 * max(w.shape) * np.finfo(np.float64).eps
    values = np.sqrt(np.where(squares > floor, squares, 0))
    k = min(k, int((values > 0).sum()))
    inner = np.ascontiguousarray(vectors[:, :k])
    outer = np.concatenate(
        [long[i : i + step].astype(np.float64) @ inner for i in range(0, len(long), step)]
    )
    outer /= values[:k]
    return Spectrum(values, *((outer, inner) if tall else (inner, outer)))


def stable_rank(values: Float[Array, " short"]) -> float:
    """Σ σ² / σ_1², 1 to the rank; NaN of zero (Rudelson & Vershynin 2007)."""
    return float((values**2).sum() / values[0] ** 2) if values[0] > 0 else np.nan


def effective_rank(values: Float[Array, " short"]) -> float:
    """exp H(σ / Σ σ), 1 to the rank; NaN of zero (Roy & Vetterli 2007)."""
    if not values[0] > 0:
        return np.nan
    p = values[values > 0] / values.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def overlap(a: Float[Array, "d k_a"], b: Float[Array, "d k_b"]) -> float:
    """‖AᵀB‖_F² / k of orthonormal columns: 0 orthogonal, 1 the same; by chance k / d.

    k: of the smaller, where one has a lower rank. NaN where one is empty.
    """
    k = min(a.shape[1], b.shape[1])
    return float(((a[:, :k].T @ b[:, :k]) ** 2).sum() / k) if k else np.nan
