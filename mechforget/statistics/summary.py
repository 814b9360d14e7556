"""The statistics that every measure reports of its effects per prompt, in one place."""

import numpy as np

from mechforget.shapes import Array, ArrayLike, Num, Shaped
from mechforget.statistics.bootstrap import interval
from mechforget.statistics.clusters import mean
from mechforget.statistics.fdr import q_values
from mechforget.statistics.permutation import sign_flip

Q = 0.05


def summarise(
    effect: Num[ArrayLike, "*place prompt"],
    cluster: Shaped[ArrayLike, " prompt"],
    *,
    floor: ArrayLike,
    fdr_axes: tuple[int, ...],
    forgetting: ArrayLike | None = None,
    forgetting_significant: ArrayLike = False,
    seed: int = 0,
) -> dict[str, Shaped[Array, "*place"]]:
    """Effect, share and significance of every place, from its effect on each prompt.

    Args: floor: noise floor. forgetting: m(pre) - m(post) per prompt.
        forgetting_significant: whether to divide by it. fdr_axes: axes of the result that are one
        Benjamini-Hochberg family, e.g. (-2, -1) for layer, head. All but cluster broadcast: with
        effect [metric, direction, layer, head, prompt], floor is [metric, direction, 1, 1],
        forgetting [metric, 1, 1, 1, prompt], forgetting_significant [metric, 1, 1, 1].
    Returns: of each place:
        effect, low, high: mean over prompts and its 95 % interval, in the metric's unit;
        share, share_low, share_high: ratio of means to the forgetting, resampled jointly; NaN if
        the forgetting is not significant or is a gain, since one can't divide by these;
        p, q: two-sided sign flips, Benjamini-Hochberg; significant: q <= 0.05, |effect| > floor.
    Raises: MeasureError: an infinite value, no prompts, or not one cluster id per prompt.
    """
    effect = np.asarray(effect, np.float64)
    shape = effect.shape[:-1]
    estimate, low, high = interval(effect, cluster, seed=seed)
    share = [np.full(shape, np.nan) for _ in range(3)]
    if forgetting is not None and np.any(forgetting_significant):
        usable = np.asarray(forgetting_significant, bool) & (mean(forgetting) > 0)
        share = [
            np.where(np.broadcast_to(usable, shape), x, np.nan)
            for x in interval(effect, cluster, over=forgetting, seed=seed)
        ]
    family = int(np.prod([shape[axis] for axis in fdr_axes], dtype=np.int64))
    p = sign_flip(effect, cluster, family=family, seed=seed)
    q = q_values(p, fdr_axes)
    return {
        "effect": estimate,
        "low": low,
        "high": high,
        "share": share[0],
        "share_low": share[1],
        "share_high": share[2],
        "p": p,
        "q": q,
        "significant": (q <= Q) & (abs(estimate) > np.asarray(floor)),
    }
