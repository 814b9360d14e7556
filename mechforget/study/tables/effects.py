"""The effects of patching or grafting a place, with intervals, shares of the forgetting, p, q and
noise floors."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.errors import StudyError
from mechforget.measures.forgetting import change
from mechforget.measures.inputs import UNITS
from mechforget.statistics import (
    crossfit,
    default_floor,
    floor_from_control,
    interval,
    mean,
    q_values,
    summarise,
)
from mechforget.statistics.summary import Q
from mechforget.study.store import Store
from mechforget.study.tables.forgetting import forgetting, forgotten
from mechforget.study.tables.frames import integers, long, once

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

STATISTICS = ("effect", "effect_low", "effect_high", "share", "share_low", "share_high")


CONTROLS = ("control_twin", "control_old")


def floors(store: Store, site: str, metric: str, direction: str) -> tuple[float, str]:
    """The noise floor of a site, and where it comes from."""
    found = {}
    for control in CONTROLS:
        if store.has(f"{control}/patching/{site}"):
            effect = store.get(f"{control}/patching/{site}").effect
            values = effect.sel(metric=metric, direction=direction).transpose(..., "prompt").values
            found[control] = float(floor_from_control(mean(values), axes=(-2, -1)))
    if found:
        largest = max(found, key=found.__getitem__)
        return found[
            largest
        ], f"99th percentile over heads of |effect| in the control pair ({largest})"
    table = forgetting(store)
    lost = -float(table.set_index("metric").loc[metric, "change"])
    return float(default_floor(metric, lost, forgotten(table, metric))), "fixed: no control pair"


def summary(store: Store, data: "xr.DataArray", site: str) -> "xr.Dataset":
    """Statistics of an effect (metric, direction, place..., prompt). Each metric and direction is
    one FDR family."""
    import xarray as xr

    places = [d for d in data.dims if d not in ("metric", "direction", "prompt")]
    data = data.transpose("metric", "direction", *places, "prompt")
    table = forgetting(store)
    score = change(store.get("forgetting").score)
    around = (1,) * len(places)
    metrics = [str(m) for m in data.metric.values]
    directions = [str(d) for d in data.direction.values]
    floor = np.array([[floors(store, site, m, d)[0] for d in directions] for m in metrics])
    significant = np.array([forgotten(table, m) for m in metrics])
    f = np.stack([score.sel(metric=m).values for m in metrics])
    axes = tuple(range(-len(places), 0)) if places else ()
    found = summarise(
        data.values,
        data.cluster.values,
        floor=floor.reshape(*floor.shape, *around),
        fdr_axes=axes,
        forgetting=f.reshape(len(metrics), 1, *around, -1),
        forgetting_significant=significant.reshape(-1, 1, *around),
        seed=store.manifest["settings"]["seed"],
    )
    if store.manifest["settings"].get("screen") and "head" in places:
        # Heads that were not patched count too: they were left out for seeming to do little.
        counted = np.where(np.isnan(found["p"]), 1.0, found["p"])
        q = np.where(np.isnan(found["p"]), np.nan, q_values(counted, axes))
        found |= {"q": q, "significant": found["significant"] & (q <= Q)}
    # If nothing was forgotten, no place can carry the loss; p and q are kept.
    found["significant"] &= significant.reshape(-1, 1, *around)
    names = {"low": "effect_low", "high": "effect_high"}
    dims = ("metric", "direction", *places)
    return xr.Dataset(
        {names.get(k, k): (dims, v) for k, v in found.items()},
        coords={d: data[d] for d in dims if d in data.coords},
    )


def site_names(store: Store) -> list[str]:
    head = "patching/"
    return [n.removeprefix(head) for n in store.finished if n.startswith(head)]


@once
def patching(store: Store) -> "pd.DataFrame":
    """One row per metric, direction, site, layer, head."""
    import pandas as pd

    tables = []
    for site in site_names(store):
        data = store.get(f"patching/{site}").effect
        tables.append(long(summary(store, data, site), site=site))
        if site == "resid_post":
            last = data.isel(layer=-1, drop=True)
            after = (
                change(store.get("forgetting").score).sel(metric=last.metric) - last
            ).transpose(*last.dims)
            tables.append(long(summary(store, after, "unembed"), site="unembed"))
    if not tables:
        raise StudyError(f"{store.path} has no patching: add it to the measures")
    table = pd.concat(tables, ignore_index=True)
    where = ["layer", "head", *["expert"] * ("expert" in table)]
    order = ["metric", "direction", "site", *where, *STATISTICS, "p", "q", "significant"]
    return integers(table.reindex(columns=order))


@once
def grafting(store: Store) -> "pd.DataFrame":
    """One row per metric, direction, matrix, layer, head; `mlp`, `block` (a whole layer), `rest`
    have no head, `expert` has its number."""
    import pandas as pd

    every = store.get("grafting/all").effect
    tables = [long(summary(store, every, "grafting"))]
    if store.has("grafting/matrices"):
        data = store.get("grafting/matrices").effect
        for matrix in data.matrix.values:
            one = data.sel(matrix=[matrix])
            tables.append(long(summary(store, one, "grafting")).dropna(subset=["effect"]))
    if store.has("grafting/modules"):  # an interrupted run may not
        modules = store.get("grafting/modules")
        tables.append(long(summary(store, modules.mlp, "grafting"), matrix="mlp"))
        if "block" in modules:  # a run of an earlier version has none
            tables.append(long(summary(store, modules.block, "grafting"), matrix="block"))
        tables.append(long(summary(store, modules.rest, "grafting"), matrix="rest"))
    if store.has("grafting/experts"):
        data = store.get("grafting/experts").effect
        tables.append(long(summary(store, data, "grafting"), matrix="expert"))
    table = pd.concat(tables, ignore_index=True)
    units = ["head", "group", *["expert"] * ("expert" in table)]
    order = ["metric", "direction", "matrix", "layer", *units, *STATISTICS]
    return integers(table.reindex(columns=[*order, "p", "q", "significant"]))


@once
def sets(store: Store) -> "pd.DataFrame":
    """Sets of the k strongest heads and of k random ones: the effect for each metric and k, and its
    share of the forgetting."""
    import pandas as pd

    data = store.get("sets")
    table = forgetting(store)
    score = change(store.get("forgetting").score)
    rows = []
    for metric in data.metric.values:
        lost, f = forgotten(table, str(metric)), score.sel(metric=metric).values
        for k in data.k.values:
            for kind, values in (
                ("top", data.top.sel(metric=metric, k=k).values),
                ("random", data.random.sel(metric=metric, k=k).mean("draw").values),
            ):
                row: dict[str, Any] = {"metric": metric, "k": int(k), "set": kind}
                got = interval(values, data.cluster.values)
                row |= dict(zip(("value", "low", "high"), map(float, got), strict=True))
                share = interval(values, data.cluster.values, over=f) if lost else (np.nan,) * 3
                names = ("share", "share_low", "share_high")
                row |= dict(zip(names, map(float, share), strict=True))
                rows.append(row | {"unit": UNITS[str(metric)]})
    return pd.DataFrame(rows)


def headline(store: Store, restore: "xr.DataArray") -> tuple[tuple[int, int], float, float, float]:
    """The head with the largest mean effect, and the cross-fitted share: what heads that were
    chosen on one half of the prompts restore on the other half."""
    n_heads = restore.sizes["head"]
    values = restore.values.reshape(-1, restore.sizes["prompt"])
    run = np.isfinite(values).any(axis=1)  # a screen leaves the others out
    mean = np.full(len(values), -np.inf)
    mean[run] = np.nanmean(values[run], axis=1)
    best = divmod(int(mean.argmax()), n_heads)
    f = change(store.get("forgetting").score).sel(metric="log_prob").values
    cluster = restore.cluster.values
    if len(np.unique(cluster)) < 2:
        return best, np.nan, np.nan, np.nan
    fitted, _ = crossfit(values[run], cluster, store.manifest["settings"]["seed"])
    share = interval(fitted, cluster, over=f)
    return best, float(share.estimate), float(share.low), float(share.high)
