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
from mechforget.models.sites import Spec
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.donor import Donor, RemoteDonor, capture, points
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
    one forward and one backward pass of each checkpoint; a metric of your own one more back.
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
        step = _step(pre.values, post.values, spec, site)
        how = encoded, step, site, method, steps, metrics
        effect = {
            "restore": _effects(inputs.post, post, pre.values, 1, *how),
            "break": _effects(inputs.pre, pre, post.values, -1, *how),
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
    variants, at = single(model.spec, site), _points(model, site)
    if not is_served(model):
        found, seen = several_gradients(model, encoded, metrics, at, seen=points(variants))
        return Recipient(Donor(model, seen), found)
    found, _ = several_gradients(model, encoded, metrics, at)
    return Recipient(RemoteDonor(model, encoded, variants), found)  # which multiplies by its W_O


def _points(model: Model, site: str, method: str = "gradient") -> list[Point]:
    """Where the gradients of a site are taken."""
    name = "pattern" if method == "softmax" else POINT.get(site, site)
    return [(layer, name) for layer in model.spec.at(site)]


def _step(pre: Any, post: Any, spec: Spec, site: str) -> "dict[int, Tensor]":
    """What each place has in pre less what it has in post: layer -> [unit, row, position, d]."""
    import torch

    by_layer: dict[int, list[Tensor]] = {}
    with torch.no_grad():
        for (edit,) in single(spec, site):
            mine = post.at(edit)
            by_layer.setdefault(edit.layer, []).append((pre.at(edit).to(mine) - mine).cpu())
        return {layer: torch.stack(parts) for layer, parts in by_layer.items()}


def _effects(
    model: Model,
    own: Recipient,
    donor: Any,
    sign: int,
    encoded: "Encoded",
    step: "dict[int, Tensor]",
    site: str,
    method: str,
    steps: int,
    metrics: Sequence[str | Metric],
) -> np.ndarray:
    """`sign` (1: restore, -1: break) times m(donor's value) - m, estimated, [metric, variant,
    prompt] in `single`'s order; of `correct`, which has no gradient, NaN."""
    at_points = _points(model, site, method)
    change, each = step, own.gradients
    if method == "softmax":
        edits = [edit for (edit,) in single(model.spec, site)]
        values = {layer: _stacked(donor, edits, layer) for layer, _ in at_points}
        patterns = repatterned(model, encoded, site, values)
        change = {layer: sign * patterns[layer].cpu() for layer, _ in at_points}
        each, _ = several_gradients(model, encoded, metrics, at_points)
    elif method == "integrated":
        move = {layer: sign * value for layer, value in step.items()}
        each = [_averaged(model, encoded, at_points, move, site, m, steps) for m in metrics]
    found = []
    for at in each:
        by_layer = [_products(model.spec, site, p, change[p[0]], at) for p in at_points]
        by_row = np.concatenate(by_layer)  # [variant, row]
        by_prompt = np.zeros((len(by_row), encoded.n_prompts))
        np.add.at(by_prompt.T, encoded.fed_prompt, by_row.T)
        if at.own is not None:
            by_prompt[:, np.isnan(at.own)] = np.nan
        found.append(by_prompt)
    found[1][:, ~encoded.has_wrong] = np.nan
    found.insert(len(METRICS), np.full_like(found[0], np.nan))  # correct
    return np.stack(found)


def _products(spec: Spec, site: str, point: Point, change: "Tensor", at: Gradients) -> np.ndarray:
    """change · gradient of a layer's units, [unit, row]."""
    g, name = at.activations[point], point[1]
    if name == "pattern":  # by head; a k is that of all heads of its group
        by_head = (change * g).double().flatten(2).sum(2).T
        groups = spec.kv_heads if site == "k" else spec.heads
        return by_head.unflatten(0, (groups, -1)).sum(1).numpy()
    each = g[None] if name == "attn_raw" or not spec.units(site) else g.movedim(2, 0)
    return (change * each).double().flatten(2).sum(2).numpy()


def _stacked(values: Any, edits: list[Any], layer: int) -> "Tensor":
    """[row, position, unit, d] of one layer."""
    import torch

    return torch.stack([values.at(edit) for edit in edits if edit.layer == layer], 2)


def _averaged(
    model: Model,
    encoded: "Encoded",
    at_points: Sequence[Point],
    move: "dict[int, Tensor]",
    site: str,
    metric: str | Metric,
    steps: int,
) -> Gradients:
    """Each point's gradient, averaged while it alone moves from the recipient's value to the
    donor's. move: layer -> [unit, row, position, d]."""
    import torch

    start = capture(model, encoded.fed, at_points, encoded.parent)
    found: dict[Point, Tensor] = {}
    for point in at_points:
        whole = move[point[0]]  # heads' outputs add up; other units lie side by side
        by_unit = whole.movedim(0, 2) if model.spec.units(site) else whole[0]
        moved = whole.sum(0) if site == "head_out" else by_unit
        total = torch.zeros_like(moved)
        for t, weight in zip(*on_unit_interval(steps), strict=True):
            value = start[point].cpu() + t * moved
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
