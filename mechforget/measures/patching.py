"""Head patching across checkpoints: where the forgetting is expressed."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from mechforget.errors import MeasureError
from mechforget.measures.explained import described
from mechforget.measures.forgetting import scored
from mechforget.measures.inputs import Inputs, measure, metric_coords, metric_names
from mechforget.models.protocol import Model
from mechforget.models.sites import QUERY_HEAD, Edit, Spec
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.donor import Donor, RemoteDonor
from mechforget.sweeps.metric import Metric
from mechforget.sweeps.plan import Variant, is_grouped, single, units_name
from mechforget.sweeps.run import sweep
from mechforget.sweeps.weights import borrowed

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.sweeps.metric import Function
    from mechforget.tasks import Encoded


@measure
def patching(
    inputs: Inputs,
    *,
    site: str = "head_out",
    positions: Iterable[int] | None = None,
    heads: Collection[tuple[int, int]] | None = None,
    metric: "Function | None" = None,
) -> "xr.Dataset":
    """Effect of replacing one checkpoint's activation at one site by the other's, place by place.

    restore = m(post with site <- pre) - m(post); break = m(pre) - m(pre with site <- post): both
    are positive where the site carries the loss. Exact: every place is run.
    Args: site: see `models.sites`; head_out is each checkpoint's own z · W_O. positions: token
        positions to patch one by one; None patches prompt and answer tokens together. heads:
        (layer, head) to patch, of a site that has query heads; the others are NaN. None: all.
        metric: one of your own besides the built-in ones, see `sweeps.metric.Metric.of`.
    Returns: `effect` (metric, direction, layer[, head or expert][, position], prompt), nats
        (correct: share); router and expert_out: of the layers that are mixtures of experts.
        k and v are patched once per group and written for each of its query heads (`group`).
    Raises: SweepError: the model has no such site. MeasureError: no such position or head.
    Source: Prakash et al. 2024 (cross-model patching); Heimersheim & Nanda, 2404.15255. Blind: z
        does not see damage to W_O, and patching it assumes that both checkpoints use the same basis
        inside the head. The effects of single heads do not add up.
    Examples:
        >>> effect = patching(planted).effect.sel(metric="log_prob", direction="restore", layer=1)
        >>> np.flatnonzero(abs(effect).max("prompt")).tolist()  # of layer 1, only the planted head
        [2]
    """
    spec = inputs.post.spec
    own = Metric.of(metric, inputs.pre, inputs.post)
    at = (None,) if positions is None else tuple(positions)
    width = inputs.encoded.ids.shape[1]
    if beyond := [p for p in at if p is not None and not 0 <= p < width]:
        raise MeasureError(f"patching: no position {beyond[0]}: want 0 to {width - 1}")
    every = single(spec, site, at)
    run = np.ones(len(every), bool)
    if heads is not None:
        if site not in QUERY_HEAD:
            raise MeasureError(
                f"patching {site}: heads can be chosen only for {', '.join(QUERY_HEAD)}"
            )
        if unknown := set(heads) - {(edit.layer, edit.head) for (edit,) in every}:
            layer, head = min(unknown)
            raise MeasureError(
                f"patching: no head L{layer}H{head}: {spec.layers} layers of {spec.heads}"
            )
        run = np.array([(edit.layer, edit.head) in heads for (edit,) in every])
    variants = [variant for variant, wanted in zip(every, run, strict=True) if wanted]

    def some(chunk: Chunk) -> "xr.Dataset":
        found = cross(inputs, chunk, variants, own)
        effect = {direction: _spread(values, run) for direction, values in found.items()}
        return labelled(effect, spec, site, None if positions is None else at, chunk.encoded, own)

    name = f"patching {site}" + ("" if positions is None else " by position")
    found = inputs.over_prompts(name, some, variants=len(variants))
    effect = ("nats", f"effect of patching {site}")
    return described(found, "2404.15255", effect=effect).assign_attrs(site=site)


def _spread(effect: np.ndarray, run: np.ndarray) -> np.ndarray:
    """[metric, variant, prompt] with NaN for the variants that were not run."""
    if run.all():
        return effect
    whole = np.full((len(effect), len(run), effect.shape[-1]), np.nan)
    whole[:, run] = effect
    return whole


def cross(
    inputs: Inputs, chunk: Chunk, variants: list[Variant], own_metric: Metric | None = None
) -> dict[str, np.ndarray]:
    """direction -> effect [metric, variant, prompt] of variants that take the other's values."""
    pre, post = (Donor.of(m, chunk.encoded, variants) for m in (inputs.pre, inputs.post))
    return {
        "restore": effects(inputs.post, chunk, pre, variants, own=post, metric=own_metric),
        "break": -effects(inputs.pre, chunk, post, variants, own=pre, metric=own_metric),
    }


def effects(
    recipient: Model,
    chunk: Chunk,
    donor: Donor | RemoteDonor,
    variants: list[Variant],
    *,
    own: Donor | RemoteDonor | None = None,
    metric: Metric | None = None,
) -> np.ndarray:
    """m(variant) - m(base), [metric, variant, prompt], of `metric_names`; own: the recipient's
    activations."""
    scores = scored(
        recipient, chunk.encoded, donor, variants, metric, own=own, max_tokens=chunk.max_tokens
    )
    return np.stack([scores[m][1:] - scores[m][0] for m in metric_names(metric)])


def labelled(
    effect: dict[str, np.ndarray],
    spec: Spec,
    site: str,
    positions: tuple[Any, ...] | None,
    encoded: "Encoded",
    metric: Metric | None = None,
) -> "xr.Dataset":
    """direction -> [metric, variant, prompt], in `single`'s order, with its axes named."""
    import xarray as xr

    directions, values = list(effect), np.stack(list(effect.values()), axis=1)
    units, name = spec.units(site), units_name(site)
    values = rearrange(
        values,
        "metric direction (layer unit position) prompt"
        " -> metric direction layer unit position prompt",
        unit=units or 1,
        position=len(positions or (None,)),
    )
    if is_grouped(site):
        values = values[:, :, :, [spec.group(h) for h in range(spec.heads)]]
    dims = ("metric", "direction", "layer", name or "head", "position", "prompt")
    array = xr.DataArray(values, dims=dims)
    array = array if name else array.squeeze("head")
    array = array.squeeze("position") if positions is None else array
    coords: dict[str, Any] = {
        **metric_coords(metric),
        "direction": directions,
        "layer": list(spec.at(site)),
        "cluster": ("prompt", encoded.cluster),
    }
    if name:
        coords[name] = range(spec.experts if name == "expert" else spec.heads)
        if is_grouped(site):
            coords["group"] = ("head", [spec.group(h) for h in range(spec.heads)])
    if positions is not None:
        coords["position"] = list(positions)
        # A position beyond a prompt's last one is padding: nothing there was patched.
        longest = np.zeros(encoded.n_prompts, int)
        np.maximum.at(longest, encoded.row_prompt, encoded.length)
        array = array.where(xr.DataArray(np.array(positions)[:, None] < longest, dims=dims[-2:]))
    return xr.Dataset({"effect": array}).assign_coords(coords)


def completeness(inputs: Inputs) -> float:
    """Largest gap, nats, between pre's log_prob and that of post with pre's last residual, final
    norm and unembedding in place: a restoration of exactly 100 % but for rounding."""
    variant = (Edit(inputs.post.spec.layers - 1, "resid_post"),)
    prompts = np.arange(min(inputs.encoded.n_prompts, 8))
    encoded = inputs.encoded.subset(prompts)
    donor = Donor.of(inputs.pre, encoded, [variant])
    expected = encoded.score(*sweep(inputs.pre, encoded, donor, []))["log_prob"][0]
    with borrowed(inputs.post, inputs.pre, [("rest", None)]):
        found = encoded.score(*sweep(inputs.post, encoded, donor, [variant]))["log_prob"][1]
    return float(abs(found - expected).max())
