"""Forgetting: how much worse the old task is answered after fine-tuning."""

from typing import TYPE_CHECKING

import numpy as np

from mechforget.measures.explained import UNITS, described
from mechforget.measures.inputs import Inputs, measure
from mechforget.models.protocol import Model
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.donor import ValueDonor
from mechforget.sweeps.run import sweep

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.tasks import Encoded

# The dimension of a sequence's results is `checkpoint`; within a pair the two are `at`.
AT = ("pre", "post")


@measure
def forgetting(inputs: Inputs) -> "xr.Dataset":
    """Every metric of every prompt, before and after.

    Returns: `score` (metric, at, prompt): log_prob and logit_diff in nats (logit_diff NaN where a
        prompt has no wrong answer), correct and preferred 0 or 1. F = score[pre] - score[post];
        its mean may be negative, which is learning. `cluster` (prompt): the unit of resampling.
    Source: Lopez-Paz & Ranzato 2017 (R[t, i]). Blind to answers that are right in other words.
    Examples:
        >>> float(abs(change(forgetting(same).score)).max())  # nothing was changed
        0.0
    """
    found = inputs.over_prompts("forgetting", lambda chunk: _scores(inputs, chunk), variants=0)
    return described(found, "1706.08840", score=("nats", "metric of the right answer"))


def _scores(inputs: Inputs, chunk: Chunk) -> "xr.Dataset":
    import xarray as xr

    encoded = chunk.encoded
    found = [unchanged(model, encoded) for model in (inputs.pre, inputs.post)]
    return xr.Dataset(
        {"score": (("metric", "at", "prompt"), np.stack([[f[m] for f in found] for m in UNITS]))},
        coords={"metric": list(UNITS), "at": list(AT), "cluster": ("prompt", encoded.cluster)},
    )


def unchanged(model: Model, encoded: "Encoded") -> dict[str, np.ndarray]:
    """metric -> [prompt] of the model as it is."""
    return encoded.score(*(x[0] for x in sweep(model, encoded, ValueDonor({}), [])))


def change(score: "xr.DataArray") -> "xr.DataArray":
    """F per prompt: m(pre) - m(post); positive is forgotten."""
    return score.sel(at="pre", drop=True) - score.sel(at="post", drop=True)
