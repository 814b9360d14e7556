"""The rotation that best turns one set of activations into another: orthogonal Procrustes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PER_DIRECTION = 5  # rows for each direction that is turned: fewer fit the rows and nothing else
ROUNDING = 1e-6  # of the largest singular value: smaller directions are a float's rounding


class Rotation(NamedTuple):
    """x -> to + (x - at), turned within a basis."""

    at: NDArray  # mean before
    to: NDArray  # mean after
    basis: NDArray  # [d, q], orthonormal
    turn: NDArray  # [q, q], orthogonal
    k: int  # directions that the rows tell about

    def __call__(self, x: NDArray) -> NDArray[np.float64]:
        """[..., d] -> [..., d]."""
        apart = x - self.at
        inside = apart @ self.basis
        return self.to + apart + (inside @ self.turn - inside) @ self.basis.T


def rotation(x: NDArray, y: NDArray) -> Rotation:
    """argmin over orthogonal R of ‖X R - Y‖, both centred, within each side's k largest principal
    directions; k = rows / 5, or all of them.

    Where the rows say nothing, R is as near to the identity as it can be, so two equal sets give
    exactly the identity. Args: x, y: [row, d], rows aligned.
    Source: Schönemann 1966, doi:10.1007/BF02289451. Blind to scaling and shear, and to a turn
        among directions beyond k.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    at, to = x.mean(0), y.mean(0)
    x, y = x - at, y - to
    v, w = (_directions(m, min(m.shape[1], len(m) // PER_DIRECTION)) for m in (x, y))
    k = min(v.shape[1], w.shape[1])
    basis, size, _ = np.linalg.svd(np.concatenate([v[:, :k], w[:, :k]], 1), full_matrices=False)
    basis = basis[:, size > ROUNDING]
    within = (basis.T @ v[:, :k]) @ ((x @ v[:, :k]).T @ (y @ w[:, :k])) @ (w[:, :k].T @ basis)
    seen = np.linalg.svd(within, compute_uv=False)
    # A little of the identity decides what the rows leave open, and nothing that they tell.
    little = max(1e-3 * seen[k - 1], 1e-12 * seen[0]) if k else 1.0
    left, _, right = np.linalg.svd(within + little * np.eye(basis.shape[1]))
    return Rotation(at, to, basis, left @ right, k)


def _directions(x: NDArray, k: int) -> NDArray[np.float64]:
    """The k largest principal directions of centred rows, [d, k or fewer], from the smaller of
    their two Gram matrices."""
    wide = len(x) < x.shape[1]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    values, vectors = values[::-1][:k].clip(0), vectors[:, ::-1][:, :k]
    seen = values > ROUNDING**2 * values[:1]
    values, vectors = values[seen], vectors[:, seen]
    return x.T @ vectors / np.sqrt(values) if wide else vectors
