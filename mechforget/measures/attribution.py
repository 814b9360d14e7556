"""Attribution patching: a first-order estimate of every patching effect, from a few passes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.errors import MeasureError
from mechforget.measures.explained import described
from mechforget.measures.inputs import Inputs, measure
from mechforget.measures.ledger import on_unit_interval
from mechforget.measures.patching import labelled
from mechforget.models.beside import is_served
from mechforget.models.protocol import Model, Point
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.donor import Donor, capture, points
from mechforget.sweeps.gradients import Gradients, gradients, several_gradients
from mechforget.sweeps.metric import Metric
from mechforget.sweeps.plan import single
from mechforget.sweeps.softmax import repatterned

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from mechforget.sweeps.metric import Function
    from mechforget.tasks import Encoded

METHODS = ("gradient", "integrated", "softmax")
METRICS = ("log_prob", "logit_diff")
STEPS = 4
POINT = {"head_out": "attn_raw"}  # where a site's gradient is taken, if not at itself
WITHOUT = ("pattern", "resid_mid", "router", "expert_out")


@measure
def attribution(
    inputs: Inputs,
    *,
    site: str = "head_out",
    method: str = "gradient",
    steps: int = STEPS,
    metric: "Function | None" = None,
) -> "xr.Dataset":
    """First-order estimate of the patching effect of every place: (s_donor - s_recipient) · ∂m/∂s.

    restore uses post's gradient, and break uses pre's; the signs are those of `patching`. It takes
    one forward pass of each checkpoint, and one backward pass for each metric and direction.
    Args: method: gradient; integrated: the gradient is averaged while one layer's site moves from
        recipient to donor, all its units together (steps times layers passes; what interacts within
        the layer is still shared out to first order); softmax (AtP*, of q and k): the pattern that
        the donor's queries or keys make is computed, and its change meets the pattern's gradient.
        metric: one of your own, that torch can differentiate, besides the built-in ones; see
        `sweeps.metric.Metric.of`.
    Returns: `effect` (metric log_prob, logit_diff; direction, layer[, head], prompt), nats. k and v
        are a group's, written for each of its heads.
    Raises: MeasureError: a method that the site doesn't have. SweepError: no such site, or a model
        without gradients.
    Source: Nanda 2023 (attribution patching); Kramár et al. 2024, 2403.00745 (AtP*); Sundararajan
        et al. 2017, 1703.01365. Blind where the gradient is flat though the step is large: a
        saturated softmax. An estimate: confirm what matters with `patching`.
    Examples:
        >>> effect = attribution(planted).effect.sel(metric="log_prob", direction="restore")
        >>> np.flatnonzero(abs(effect.sel(layer=1)).max("prompt")).tolist()  # the planted head
        [2]
    """
    spec, own_metric = inputs.post.spec, Metric.of(metric, inputs.pre, inputs.post)
    spec.require(site)
    if method not in METHODS or site in WITHOUT or (method == "softmax" and site not in ("q", "k")):
        raise MeasureError(
            f"attribution of {site} by {method}: want gradient or integrated (not for "
            f"{', '.join(WITHOUT)}), or softmax for q and k"
        )
    if method == "softmax":
        spec.require("pattern")

    metrics: list[str | Metric] = [*METRICS, *([] if own_metric is None else [own_metric])]

    def some(chunk: Chunk) -> "xr.Dataset":
        encoded = chunk.encoded
        both = inputs.pre, inputs.post
        if method == "gradient":
            pre, post = (_once(model, encoded, site, metrics) for model in both)
        else:
            variants = single(spec, site)
            pre, post = (Recipient(Donor.of(model, encoded, variants)) for model in both)
        shared = encoded, site, method, steps, metrics
        effect = {
            "restore": _effects(inputs.post, post, pre.values, *shared),
            "break": -_effects(inputs.pre, pre, post.values, *shared),
        }
        found = labelled(effect, spec, site, None, encoded, own_metric)
        return found.drop_sel(metric="correct")

    found = inputs.over_prompts(f"attribution {site}", some, variants=spec.layers, across=False)
    effect = ("nats", f"first-order estimate of the effect of patching {site}")
    return described(found, "2403.00745", effect=effect).assign_attrs(site=site, method=method)


@dataclass(frozen=True)
class Recipient:
    """A model's own values at a site, and its gradients there, if they came from the same pass."""

    values: Any
    gradients: Sequence[Gradients] = ()


def _once(
    model: Model, encoded: "Encoded", site: str, metrics: Sequence[str | Metric]
) -> Recipient:
    """Values and gradients from one forward pass, and one backward pass for each metric."""
    variants = single(model.spec, site)
    if is_served(model):  # where a server multiplies by W_O, and sends what comes out
        found, _ = several_gradients(model, encoded, metrics, _points(model, site))
        return Recipient(Donor.of(model, encoded, variants), found)
    found, seen = several_gradients(
        model, encoded, metrics, _points(model, site), seen=points(variants)
    )
    return Recipient(Donor(model, seen), found)


def _points(model: Model, site: str, method: str = "gradient") -> list[Point]:
    """Where the gradients of a site are taken."""
    name = "pattern" if method == "softmax" else POINT.get(site, site)
    return [(layer, name) for layer in model.spec.at(site)]


def _effects(
    model: Model,
    own: Recipient,
    donor: Any,
    encoded: "Encoded",
    site: str,
    method: str,
    steps: int,
    metrics: Sequence[str | Metric],
) -> np.ndarray:
    """m(donor's value) - m, estimated, [metric, variant, prompt] in `single`'s order; of `correct`,
    which has no gradient, NaN."""
    import torch

    edits = [edit for (edit,) in single(model.spec, site)]
    at_points = _points(model, site, method)
    name = at_points[0][1]
    mine = own.values
    with torch.no_grad():
        step = {edit: (donor.at(edit).to(mine.at(edit)) - mine.at(edit)).cpu() for edit in edits}
    change: Sequence[Tensor] = ()
    each = own.gradients
    if method == "softmax":
        values = {layer: _stacked(donor, edits, layer) for layer, _ in at_points}
        change = repatterned(model, encoded, site, values)
        each, _ = several_gradients(model, encoded, metrics, at_points)
    elif method == "integrated":
        each = [_averaged(model, encoded, at_points, step, site, m, steps) for m in metrics]
    found = np.full((len(metrics), len(edits), encoded.n_prompts), np.nan)
    for i, at in enumerate(each):
        for j, edit in enumerate(edits):
            g = at.activations[edit.layer, name]
            if method == "softmax":
                heads = [
                    h
                    for h in range(model.spec.heads)
                    if edit.unit == (model.spec.group(h) if site == "k" else h)
                ]
                product = (change[edit.layer].cpu() * g)[:, heads]
            else:
                product = step[edit] * (
                    g if name == "attn_raw" or edit.head is None else g[:, :, edit.unit]
                )
            by_row = product.double().flatten(1).sum(1).numpy()
            found[i, j] = np.bincount(encoded.fed_prompt, by_row, encoded.n_prompts)
        if at.own is not None:
            found[i, :, np.isnan(at.own)] = np.nan
    found[1, :, ~encoded.has_wrong] = np.nan
    return np.insert(found, len(METRICS), np.nan, axis=0)  # correct


def _stacked(values: Any, edits: list[Any], layer: int) -> "Tensor":
    """[row, position, unit, d] of one layer."""
    import torch

    return torch.stack([values.at(edit) for edit in edits if edit.layer == layer], 2)


def _averaged(
    model: Model,
    encoded: "Encoded",
    at_points: Sequence[Point],
    step: dict[Any, "Tensor"],
    site: str,
    metric: str | Metric,
    steps: int,
) -> Gradients:
    """Each point's gradient, averaged while it alone moves from the recipient's value to the
    donor's."""
    import torch

    start = capture(model, encoded.fed, at_points, encoded.parent)
    found: dict[Point, Tensor] = {}
    for point in at_points:
        mine = [edit for edit in step if edit.layer == point[0]]
        parts = [step[edit] for edit in mine]
        if site == "head_out":
            move = torch.stack(parts).sum(0)
        else:
            move = parts[0] if mine[0].head is None else torch.stack(parts, 2)
        total = torch.zeros_like(move)
        for t, weight in zip(*on_unit_interval(steps), strict=True):
            value = start[point].cpu() + t * move
            at = gradients(model, encoded, [point], metric=metric, put={point: value})
            total += weight * at.activations[point]
        found[point] = total
    return replace(at, activations=found)


def screened(found: "xr.Dataset", n: int) -> list[tuple[int, int]]:
    """The n heads that rank first by their estimated effect on log_prob, in either direction.

    Ranks and not effects: restore's are often the larger, and would leave break few places.
    """
    mean = abs(found.effect.sel(metric="log_prob").mean("prompt"))
    flat = mean.transpose("direction", "layer", "head").values.reshape(mean.sizes["direction"], -1)
    rank = np.argsort(np.argsort(-flat, axis=1, kind="stable"), axis=1).min(0)
    order = np.argsort(rank, kind="stable")[:n]
    return [divmod(int(i), mean.sizes["head"]) for i in order]
