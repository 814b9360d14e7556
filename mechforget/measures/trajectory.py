"""The path of a sequence of checkpoints, from the inner products of its steps alone."""

import numpy as np

from mechforget.shapes import Array, Float


def trajectory(gram: Float[Array, "*place step step"]) -> dict[str, Array]:
    """From the inner products of steps u_t = θ_t - θ_(t-1), t = 1 … T.

    Returns: `path` Σ ‖u_t‖ and `displacement` ‖θ_T - θ_0‖ [...]; `step` ‖u_t‖ [..., t]; `cosine`
        [..., t] of u_t and u_(t-1), NaN at t = 1 and beside steps of 0; `coordinate`
        [..., checkpoint 0 … T, component]: principal components of the checkpoints, centred; their
        sign is that of the last checkpoint, made positive; `explained` [..., component], shares.
    """
    T = gram.shape[-1]
    norms = np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0))
    cosine = np.full(norms.shape, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        turn = np.diagonal(gram, 1, axis1=-2, axis2=-1) / (norms[..., 1:] * norms[..., :-1])
    cosine[..., 1:] = np.clip(turn, -1, 1)
    sums = np.tril(np.ones((T + 1, T)), -1)  # θ_t - θ_0 = Σ u_s, s <= t
    centred = sums - sums.mean(0)
    among = centred @ gram @ centred.T
    squares, vectors = np.linalg.eigh((among + among.swapaxes(-1, -2)) / 2)
    squares, vectors = squares[..., ::-1].clip(0)[..., :T], vectors[..., ::-1][..., :T]
    vectors = vectors * np.where(vectors[..., -1:, :] < 0, -1, 1)
    total = squares.sum(-1, keepdims=True)
    return {
        "path": norms.sum(-1),
        "displacement": np.sqrt(np.maximum(gram.sum((-1, -2)), 0)),
        "step": norms,
        "cosine": cosine,
        "coordinate": vectors * np.sqrt(squares)[..., None, :],
        "explained": squares / np.where(total > 0, total, np.nan),
    }
