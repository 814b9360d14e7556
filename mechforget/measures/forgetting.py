"""Forgetting: how much worse the old task is answered after fine-tuning."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.measures.explained import UNITS, described
from mechforget.measures.inputs import Inputs, measure, metric_coords
from mechforget.models.protocol import Model
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.donor import ValueDonor
from mechforget.sweeps.metric import Metric
from mechforget.sweeps.plan import Variant
from mechforget.sweeps.run import sweep

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.sweeps.metric import Function
    from mechforget.tasks import Encoded

# The dimension of a sequence's results is `checkpoint`; within a pair the two are `at`.
AT = ("pre", "post")


@measure
def forgetting(inputs: Inputs, *, metric: "Function | None" = None) -> "xr.Dataset":
    """Scores every prompt with every metric, before and after fine-tuning.

    metric: one of your own besides the built-in ones, see `sweeps.metric.Metric.of`.
    Returns: `score` (metric, at, prompt): log_prob and logit_diff in nats (logit_diff NaN where a
        prompt has no wrong answer), correct and preferred 0 or 1. F = score[pre] - score[post];
        its mean may be negative, which is learning. `cluster` (prompt): the unit of resampling.
    Source: Lopez-Paz & Ranzato 2017 (R[t, i]). Blind to right answers in other words.
    Examples:
        >>> float(abs(change(forgetting(same).score)).max())  # nothing was changed
        0.0
    """
    own = Metric.of(metric, inputs.pre, inputs.post)
    found = inputs.over_prompts("forgetting", lambda chunk: _scores(inputs, chunk, own), variants=0)
    return described(found, "1706.08840", score=("nats", "metric of the right answer"))


def _scores(inputs: Inputs, chunk: Chunk, own: Metric | None) -> "xr.Dataset":
    import xarray as xr

    encoded = chunk.encoded
    found = [unchanged(model, encoded, own) for model in (inputs.pre, inputs.post)]
    coords = metric_coords(own, UNITS)
    values = np.stack([[f[m] for f in found] for m in coords["metric"]])
    return xr.Dataset(
        {"score": (("metric", "at", "prompt"), values)},
        coords={**coords, "at": list(AT), "cluster": ("prompt", encoded.cluster)},
    )


def unchanged(
    model: Model, encoded: "Encoded", metric: Metric | None = None
) -> dict[str, np.ndarray]:
    """metric -> [prompt] of the model as it is."""
    found = scored(model, encoded, ValueDonor({}), [], metric)
    return {name: values[0] for name, values in found.items()}


def scored(
    model: Model,
    encoded: "Encoded",
    donor: Any,
    variants: Sequence[Variant],
    metric: Metric | None,
    **how: Any,
) -> dict[str, np.ndarray]:
    """metric -> [1 + variant, prompt], one's own too; 0 is the model as it is. how: as `sweep`."""
    log_prob, top, *own = sweep(model, encoded, donor, variants, metric=metric, **how)
    found = encoded.score(log_prob, top)
    return found if metric is None else found | {metric.name: own[0]}


def change(score: "xr.DataArray") -> "xr.DataArray":
    """F per prompt: m(pre) - m(post); positive is forgotten."""
    return score.sel(at="pre", drop=True) - score.sel(at="post", drop=True)
