"""From per-prompt results to tables with intervals, shares, p, q and floors: what is exported,
shown and drawn."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.errors import StudyError
from mechforget.measures.forgetting import change
from mechforget.measures.inputs import UNITS
from mechforget.statistics import (
    default_floor,
    floor_from_control,
    interval,
    mean,
    q_values,
    sign_flip,
    summarise,
)
from mechforget.statistics.summary import Q
from mechforget.study.store import Store

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

STATISTICS = ("effect", "effect_low", "effect_high", "share", "share_low", "share_high")
CONTROLS = ("control_twin", "control_old")
OTHERS = (
    "attention_change",
    "attention_roles",
    "logit_attribution",
    "clean_corrupt",
    "patching_positions",
)


# The name of a table -> a result that it needs.
MECHANISMS = {
    "ledger": "ledger",
    "origins": "origins",
    "attribution": "attribution/",
    "drift": "drift",
    "readout": "readout",
    "interference": "interference",
    "similarity": "similarity",
    "landscape": "landscape/",
    "routing": "routing",
    "weights": "weights",
    "agreement": "forgetting",
    "claims": "forgetting",
}


def once(table: "Callable[..., pd.DataFrame]") -> "Callable[..., pd.DataFrame]":
    """A finished result never changes: its table is reckoned once for each open store."""

    @wraps(table)
    def found(store: Store, *names: str) -> "pd.DataFrame":
        key = (table.__name__, *names)
        if key not in store.tables:
            store.tables[key] = table(store, *names)
        return store.tables[key].copy()

    return found


def export(store: Store, name: str) -> "pd.DataFrame":
    """The table of one measure; of a sequence, one for each checkpoint with a column `checkpoint`.

    Raises: StudyError: this run has none of that name.
    """
    import pandas as pd

    if store.checkpoints > 1 and not store.prefix:
        steps = range(1, store.checkpoints + 1)
        tables = [_export(store.at(t), name).assign(checkpoint=t) for t in steps]
        table = pd.concat(tables, ignore_index=True)
        return table.reindex(columns=["checkpoint", *table.columns.drop("checkpoint")])
    return _export(store, name)


def _export(store: Store, name: str) -> "pd.DataFrame":
    if name == "forgetting":
        return forgetting(store)
    if name == "patching":
        return patching(store)
    if name == "grafting":
        return grafting(store)
    if name == "sets":
        return sets(store)
    if name in OTHERS:
        return generic(store.get(name), store)
    if name in MECHANISMS:
        return _mechanism(store, name)
    known = ("forgetting", "patching", "grafting", "sets", *OTHERS, *MECHANISMS)
    raise StudyError(f"measure {name!r} is unknown; want one of {', '.join(known)}")


@once
def _mechanism(store: Store, name: str) -> "pd.DataFrame":
    from mechforget.study import agreement, claims, mechanisms

    if not any(done.startswith(MECHANISMS[name]) for done in store.finished):
        raise StudyError(f"{store.path} has no {name}: add it to the measures")
    room = {"agreement": agreement, "claims": claims}.get(name, mechanisms)
    return getattr(room, name)(store)


@once
def forgetting(store: Store, name: str = "forgetting") -> "pd.DataFrame":
    """One row per metric: pre, post, change = post - pre, its interval, n clusters, p."""
    import pandas as pd

    data = store.get(name)
    rows = []
    for metric in UNITS:
        score = data.score.sel(metric=metric)
        values, cluster = -change(score).values, data.cluster.values
        present = ~np.isnan(values)
        estimate, low, high = interval(values, cluster)
        p = sign_flip(values, cluster)
        floor = float(default_floor(metric, 0.0, False))
        rows.append(
            {
                "metric": metric,
                "pre": float(mean(score.sel(at="pre").values)),
                "post": float(mean(score.sel(at="post").values)),
                "change": float(estimate),
                "change_low": float(low),
                "change_high": float(high),
                "n": len(np.unique(cluster[present])),
                "unit": UNITS[metric],
                "p": float(p),
                "significant": bool(p <= 0.05 and abs(estimate) > floor),
            }
        )
    return pd.DataFrame(rows)


def forgotten(table: "pd.DataFrame", metric: str) -> bool:
    """Whether this metric significantly fell."""
    row = table.set_index("metric").loc[metric]
    return bool(row["significant"] and row["change"] < 0)


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
        return found[largest], f"99th percentile over heads of {largest.replace('_', ' ')}"
    table = forgetting(store)
    lost = -float(table.set_index("metric").loc[metric, "change"])
    return float(default_floor(metric, lost, forgotten(table, metric))), "fixed: no control pair"


def summary(store: Store, data: "xr.DataArray", site: str) -> "xr.Dataset":
    """Statistics of an effect (metric, direction, place..., prompt); one FDR family per metric
    and direction."""
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
        # Heads that weren't patched count: they were left out for what they seemed to do.
        counted = np.where(np.isnan(found["p"]), 1.0, found["p"])
        q = np.where(np.isnan(found["p"]), np.nan, q_values(counted, axes))
        found |= {"q": q, "significant": found["significant"] & (q <= Q)}
    # Where nothing was forgotten there is nothing for a place to carry: its p and q stay.
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
        tables.append(_long(summary(store, data, site), site=site))
        if site == "resid_post":
            last = data.isel(layer=-1, drop=True)
            after = (
                change(store.get("forgetting").score).sel(metric=last.metric) - last
            ).transpose(*last.dims)
            tables.append(_long(summary(store, after, "unembed"), site="unembed"))
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
    tables = [_long(summary(store, every, "grafting"))]
    if store.has("grafting/matrices"):
        data = store.get("grafting/matrices").effect
        for matrix in data.matrix.values:
            one = data.sel(matrix=[matrix])
            tables.append(_long(summary(store, one, "grafting")).dropna(subset=["effect"]))
    if store.has("grafting/modules"):  # an interrupted run may not
        modules = store.get("grafting/modules")
        tables.append(_long(summary(store, modules.mlp, "grafting"), matrix="mlp"))
        if "block" in modules:  # a run of an earlier version has none
            tables.append(_long(summary(store, modules.block, "grafting"), matrix="block"))
        tables.append(_long(summary(store, modules.rest, "grafting"), matrix="rest"))
    if store.has("grafting/experts"):
        data = store.get("grafting/experts").effect
        tables.append(_long(summary(store, data, "grafting"), matrix="expert"))
    table = pd.concat(tables, ignore_index=True)
    units = ["head", "group", *["expert"] * ("expert" in table)]
    order = ["metric", "direction", "matrix", "layer", *units, *STATISTICS]
    return integers(table.reindex(columns=[*order, "p", "q", "significant"]))


@once
def sets(store: Store) -> "pd.DataFrame":
    """Cumulative top-k sets and random sets: effect per metric, k, with share of the forgetting."""
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


def generic(data: "xr.Dataset", store: Store) -> "pd.DataFrame":
    """Any other measure: its dimensions as columns, then value, low, high, unit."""
    import pandas as pd
    import xarray as xr

    tables = []
    for name, array in sorted(data.data_vars.items()):  # a folder lists them in any order
        over = "prompt" if "prompt" in array.dims else "sequence"
        places = [d for d in array.dims if d != over]
        values = array.transpose(*places, over).values
        cluster = data.cluster.values if over == "prompt" else np.arange(values.shape[-1])
        got = dict(zip(("value", "low", "high"), interval(values, cluster), strict=True))
        labelled = xr.Dataset(
            {k: (places, v) for k, v in got.items()},
            coords={d: data[d] for d in places if d in data.coords},
        )
        table = _long(labelled) if places else pd.DataFrame([{k: float(v) for k, v in got.items()}])
        unit = array.attrs.get("unit") or array.attrs.get("units") or _unit(str(name))
        table["unit"] = [UNITS[m] for m in table["metric"]] if "metric" in table else unit
        tables.append(table.assign(quantity=str(name)))
    table = pd.concat(tables, ignore_index=True)
    last = ["value", "low", "high", "unit"]
    first = [c for c in table.columns if c not in (*last, "quantity")]
    return integers(table.reindex(columns=["quantity", *first, *last]))


def _unit(name: str) -> str:
    return {"entropy": "bit", "js": "bit", "first": "share"}.get(
        name, "share" if name in ("induction", "previous") else "nats"
    )


def _long(data: "xr.Dataset", **columns: str) -> "pd.DataFrame":
    table = data.to_dataframe().reset_index() if data.sizes else data.to_pandas().to_frame().T
    return table.assign(**columns)


def integers(table: "pd.DataFrame") -> "pd.DataFrame":
    """Layers, heads and the like as integers that may be missing."""
    for column in ("layer", "head", "group", "expert", "position"):
        if column in table:
            table[column] = table[column].astype("Int64")
    return table
