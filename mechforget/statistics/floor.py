"""The noise floor: effects that are not larger count as noise, even if the prompts agree on them.

Another seed of the same training, or more training on the old task, also changes every head a
little, and with enough prompts each of these changes is statistically significant. A control pair
shows how large such changes are; without one a fixed floor is used.
"""

import numpy as np

from mechforget.shapes import Array, ArrayLike, Float, Num

ABSOLUTE = 0.01  # nats; for `correct` and `preferred` one answer in a hundred
RELATIVE = 0.01  # of the forgetting


def floor_from_control(
    effect: Num[ArrayLike, "..."], *, axes: int | tuple[int, ...] = -1, q: float = 0.99
) -> Float[Array, "..."]:
    """The 99th percentile over `axes` (heads) of |effect| in the control pair.

    effect: means over prompts, e.g. [metric, direction, layer, head] with axes (-2, -1); NaN (not
    measured) is ignored. Returns the other axes, in the effect's unit; NaN if all values are NaN.
    """
    effect = abs(np.asarray(effect, np.float64))
    empty = np.isnan(effect).all(axis=axes)  # numpy would also give NaN, with a warning
    floor = np.nanquantile(np.where(np.expand_dims(empty, axes), 0.0, effect), q, axis=axes)
    return np.where(empty, np.nan, floor)


def default_floor(metric: str, forgetting: float, significant: bool) -> float:
    """The floor without a control: max(0.01 nats, 1 % of a significant change), or 0.01 for a rate.

    metric: log_prob, logit_diff (nats), correct, preferred (rates). forgetting: pre - post; a
    significant gain raises the floor just as a loss does.
    """
    if metric in ("correct", "preferred") or not significant:
        return ABSOLUTE
    return max(ABSOLUTE, RELATIVE * abs(float(forgetting)))
