"""The noise floor: how large an effect is still nothing, even if the prompts agree on it.

Two seeds of one training, or more training on the old task, also change every head a little, and
with enough prompts each change is statistically significant. The control pair says how large such
changes are; without one a fixed floor stands in.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

ABSOLUTE = 0.01  # nats; one answer in a hundred for `correct` and `preferred`
RELATIVE = 0.01  # of the forgetting


def floor_from_control(
    effect: ArrayLike, *, axes: int | tuple[int, ...] = -1, q: float = 0.99
) -> NDArray[np.float64]:
    """The 99th percentile over `axes` (heads) of |effect| in the control pair.

    effect: means over prompts, e.g. [metric, direction, layer, head] with axes (-2, -1); NaN
    (not measured) ignored. Returns the other axes, in the effect's unit; NaN where all is NaN.
    """
    effect = abs(np.asarray(effect, np.float64))
    empty = np.isnan(effect).all(axis=axes)  # numpy would warn, and answer NaN as well
    floor = np.nanquantile(np.where(np.expand_dims(empty, axes), 0.0, effect), q, axis=axes)
    return np.where(empty, np.nan, floor)


def default_floor(metric: str, forgetting: float, significant: bool) -> float:
    """The floor without a control: max(0.01 nats, 1 % of a significant change), 0.01 for a rate.

    metric: log_prob, logit_diff (nats), correct, preferred (rates). forgetting: pre - post; a
    significant gain raises the floor as a loss does.
    """
    if metric in ("correct", "preferred") or not significant:
        return ABSOLUTE
    return max(ABSOLUTE, RELATIVE * abs(float(forgetting)))
