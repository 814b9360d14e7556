"""Products of two tasks' gradients, minibatch by minibatch: how far they oppose each other, with
intervals and a reference of unrelated gradients."""

from typing import Any

import numpy as np

from mechforget.shapes import Array, Bool, Float, Int, Num, Shaped

DRAWS, ENDS = 1000, (0.025, 0.975)
OLD, NEW = "old", "new"  # whose a minibatch is


def quantities(
    gram: Float[Array, "*place minibatch minibatch"],
    old: Int[Array, " some_old"],
    new: Int[Array, " some_new"],
) -> dict[str, Float[Array, "*place"]]:
    """The estimates from the gradients' inner products, for chosen minibatches of both tasks. In a
    resample these may repeat: a minibatch is never compared with itself.

    dot: mean g_old · g_new. cosine: of the mean gradients. corrected: dot over the square root of
    the product of the two tasks' own off-diagonal means, so free of minibatches' noise; NaN where
    one of those isn't positive. conflict: share of pairs with a negative product. reliability:
    1 - the same share among the old task's own minibatches.
    """
    times = (np.bincount(which, minlength=gram.shape[-1])[None] for which in (old, new))
    return {name: value[0] for name, value in _weighed(gram, *times).items()}


def _weighed(
    gram: Float[Array, "*place minibatch minibatch"],
    a: Num[Array, "draw minibatch"],
    b: Num[Array, "draw minibatch"],
) -> dict[str, Float[Array, " draw *place"]]:
    """`quantities` of minibatches that count a and b times in a draw; if the count is negative, the
    gradient has changed sign. All are sums of entries of gram, so one product each."""
    size = gram.shape[-1]
    flat = np.asarray(gram, np.float64).reshape(-1, size * size).T
    apart = ~np.eye(size, dtype=bool)
    n_a, n_b = (abs(x).sum(1, keepdims=True) for x in (a, b))
    own_a, own_b = (n**2 - (x**2).sum(1, keepdims=True) for n, x in ((n_a, a), (n_b, b)))

    def total(
        x: Num[Array, "draw minibatch"],
        y: Num[Array, "draw minibatch"],
        of: Float[Array, "pair entry"] | Bool[Array, "pair entry"],
        among: Any = True,
    ) -> Float[Array, "draw entry"]:
        pairs = np.where(among, x[:, :, None] * y[:, None], 0.0)
        return pairs.reshape(len(x), -1) @ of.astype(np.float64)

    dot = total(a, b, flat) / (n_a * n_b)
    fights = total(a, np.maximum(b, 0), flat < 0) + total(a, np.maximum(-b, 0), flat > 0)
    old = total(a, a, flat, apart) / np.maximum(1, own_a)
    new = total(b, b, flat, apart) / np.maximum(1, own_b)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = total(a, a, flat) / n_a**2 * (total(b, b, flat) / n_b**2)
        found = {
            "dot": dot,
            "cosine": dot / np.sqrt(lengths),
            "corrected": dot / np.sqrt(np.where((old > 0) & (new > 0), old * new, np.nan)),
            "conflict": np.where(total(a, abs(b), flat != 0) == 0, np.nan, fights / (n_a * n_b)),
            "reliability": total(a, a, flat >= 0, apart) / np.maximum(1, own_a),
        }
    return {name: value.reshape(len(a), *gram.shape[:-2]) for name, value in found.items()}


def summary(
    gram: Float[Array, "*place minibatch minibatch"],
    task: Shaped[Array, " minibatch"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, tuple[Float[Array, "*place"], Float[Array, "*place"], Float[Array, "*place"]]]:
    """name -> (estimate, low, high): 95 % percentile bootstrap over minibatches of both tasks; and
    `null_cosine`, `null_conflict`: the mean and the central 95 % when whole minibatches of the new
    task change sign at random, as unrelated gradients would, and `p` (two-sided, of the dot)."""
    rng = np.random.default_rng(seed)
    both = tuple(np.flatnonzero(task == name) for name in (OLD, NEW))
    estimate = quantities(gram, *both)
    again, signed = np.zeros((2, 2, draws, len(task)))  # [old or new, draw, minibatch]
    for i, which in enumerate(both):
        again[i][:, which] = rng.multinomial(len(which), np.full(len(which), 1 / len(which)), draws)
        signed[i][:, which] = 1
    signed[1] *= rng.choice([-1.0, 1.0], (draws, len(task)))
    drawn, flipped = _weighed(gram, *again), _weighed(gram, *signed)
    found = {}
    for name, value in estimate.items():
        ends = _central(drawn[name])
        found[name] = (value, *(np.where(np.isnan(value), np.nan, end) for end in ends))
    for name in ("cosine", "conflict"):
        some = np.isfinite(flipped[name]).any(0)
        mean = np.full(some.shape, np.nan)
        mean[some] = np.nanmean(flipped[name][:, some], 0)
        found[f"null_{name}"] = (mean, *_central(flipped[name]))
    # the same sums in another order
    slack = 1e-12 * abs(gram[..., both[0][:, None], both[1]]).mean((-2, -1))
    beyond = (abs(flipped["dot"]) >= abs(estimate["dot"]) - slack).sum(0)
    p = (beyond + 1) / (draws + 1)
    found["p"] = (p, p, p)
    return found


def _central(drawn: Float[Array, " draw *place"]) -> Float[Array, " 2 *place"]:
    """The ends of the central 95 % of draws; NaN if no draw has a value."""
    flat = drawn.reshape(len(drawn), -1)
    there, ends = np.isfinite(flat), np.full((2, flat.shape[1]), np.nan)
    whole = there.all(0)
    ends[:, whole] = np.quantile(flat[:, whole], ENDS, axis=0)
    for i in np.flatnonzero(there.any(0) & ~whole):
        ends[:, i] = np.quantile(flat[there[:, i], i], ENDS)
    return ends.reshape(2, *drawn.shape[1:])
