"""Ridge regression whose penalty is chosen by cross-validation over clusters of rows."""

from typing import NamedTuple

import numpy as np

from mechforget.shapes import Array, Float, Int, Num, Shaped
from mechforget.statistics.cka import centred

PENALTIES = 10.0 ** np.arange(-3, 4)  # times the mean eigenvalue of the rows' inner products


class Ridge(NamedTuple):
    """ŷ = y₀ + (x - x₀) · (x_fit - x₀)ᵀ dual."""

    x_mean: Float[Array, " d"]
    y_mean: Float[Array, " out"]
    rows: Float[Array, "row d"]  # x_fit - x₀
    dual: Float[Array, "row out"]
    penalty: float

    def __call__(self, x: Num[Array, "*place d"]) -> Float[Array, "*place out"]:
        return self.y_mean + (x - self.x_mean) @ (self.rows.T @ self.dual)


def ridge(
    x: Num[Array, "row d"], y: Num[Array, "row out"], cluster: Shaped[Array, " row"]
) -> Ridge:
    """argmin ‖y - b - x w‖² + λ ‖w‖², the intercept b not penalised.

    λ is the one of seven values with the least squared error on clusters that are left out one at a
    time. These errors follow exactly from the fit on all rows: (I - H_cc)⁻¹ times its residuals on
    cluster c.
    Source: Hoerl & Kennard 1970; leaving out a block: Cook & Weisberg 1982, section 5.2. Blind to
        what isn't linear.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    rows, toward = centred(x), y - y.mean(0)
    values, vectors = np.linalg.eigh(rows @ rows.T)
    values = values.clip(0)
    turned = vectors.T @ toward
    size = values.mean() or 1.0  # of equal rows every penalty gives the mean
    groups = _by_size(cluster)

    def error(penalty: float) -> float:
        kept = values / (values + penalty)
        hat = 1 / len(x) + (vectors * kept) @ vectors.T
        left = toward - (vectors * kept) @ turned
        total = 0.0
        for g in groups:  # [cluster, row of it]
            within = np.eye(g.shape[1]) - hat[g[:, :, None], g[:, None]]
            total += (np.linalg.solve(within, left[g]) ** 2).sum()
        return total

    penalty = float(min(size * PENALTIES, key=error))
    dual = vectors @ (turned / (values + penalty)[:, None])
    return Ridge(x.mean(0), y.mean(0), rows, dual, penalty)


def _by_size(cluster: Shaped[Array, " row"]) -> list[Int[Array, "_ _"]]:
    """The rows of each cluster, [cluster, row of it], an array for each size of clusters."""
    _, index = np.unique(cluster, return_inverse=True)
    order, size = np.argsort(index, kind="stable"), np.bincount(index)
    starts = np.cumsum(size) - size
    return [order[starts[size == m][:, None] + np.arange(m)] for m in np.unique(size)]
