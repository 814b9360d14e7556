"""The rotation that best maps one set of activations to another (orthogonal Procrustes)."""

from typing import NamedTuple

import numpy as np

from mechforget.shapes import Array, Float, Num

PER_DIRECTION = 5  # rows for each direction that is rotated: with fewer the rotation overfits
ROUNDING = 1e-6  # times the largest singular value: smaller ones are rounding errors


class Rotation(NamedTuple):
    """x -> to + (x - at), where x - at is rotated within the span of a basis."""

    at: Float[Array, " d"]  # mean before
    to: Float[Array, " d"]  # mean after
    basis: Float[Array, "d q"]  # orthonormal
    turn: Float[Array, "q q"]  # orthogonal
    k: int  # number of directions that the rows determine

    def __call__(self, x: Num[Array, "*place d"]) -> Float[Array, "*place d"]:
        apart = x - self.at
        inside = apart @ self.basis
        return self.to + apart + (inside @ self.turn - inside) @ self.basis.T


def rotation(x: Num[Array, "row d"], y: Num[Array, "row d"]) -> Rotation:
    """argmin over orthogonal R of ‖X R - Y‖, both centred, within each side's k largest principal
    directions; k = rows / 5, or all of them.

    Where the rows don't determine R, it is as close to the identity as possible. So two equal sets
    give exactly the identity. The rows of x and y are of the same prompts.
    Source: Schönemann 1966, doi:10.1007/BF02289451. Blind to scaling and shear, and to a
        rotation among directions beyond k.
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
    # A small multiple of the identity decides only what the rows leave open.
    little = max(1e-3 * seen[k - 1], 1e-12 * seen[0]) if k else 1.0
    left, _, right = np.linalg.svd(within + little * np.eye(basis.shape[1]))
    return Rotation(at, to, basis, left @ right, k)


def _directions(x: Float[Array, "row d"], k: int) -> Float[Array, "d k_or_fewer"]:
    """The k largest principal directions of centred rows, from the smaller of their two Gram
    matrices."""
    wide = len(x) < x.shape[1]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    values, vectors = values[::-1][:k].clip(0), vectors[:, ::-1][:, :k]
    seen = values > ROUNDING**2 * values[:1]
    values, vectors = values[seen], vectors[:, seen]
    return x.T @ vectors / np.sqrt(values) if wide else vectors
