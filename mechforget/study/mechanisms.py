"""Tables of how the loss came about: gradients, geometry, landscape, routing, weights."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.measures.forgetting import change
from mechforget.statistics import default_floor, interval, summarise
from mechforget.study import tables
from mechforget.study.store import Store

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

NUMBERS = ("norm", "norm_pre", "relative", "largest", "changed")  # first among the weights' columns
WHERE = ("part", "layer", "head", "group", "expert")


def ledger(store: Store) -> "pd.DataFrame":
    """One row per cell of the weights: what its change added to the old task's loss, nats; `rest`
    (embeddings, unembedding, last norm, and the quadrature's gap) included, they sum to the loss's
    change: `forgetting`'s with the opposite sign. Shares where the forgetting is significant."""
    return _cells(store, store.get("ledger"))


def origins(store: Store) -> "pd.DataFrame":
    """As `ledger`, of what the most expressed head writes: `of_layer`, `of_head`."""
    data = store.get("origins")
    table = _cells(store, data)
    return table.assign(of_layer=int(data.attrs["layer"]), of_head=int(data.attrs["head"]))


def _cells(store: Store, data: "xr.Dataset") -> "pd.DataFrame":
    import pandas as pd

    units: dict[Any, str] = {
        "matrix": "matrix",
        "kv_matrix": "matrix",
        "mlp_matrix": "matrix",
        "moe_layer": "layer",
    }
    found, values = [], []
    for name, part in (
        ("heads", None),
        ("groups", None),
        ("mlps", None),
        ("others", "other"),
        ("rest", "rest"),
        ("experts", "expert"),
        ("routers", "router"),
        ("routing", "routing"),
        ("gap", "rest"),
    ):
        if name not in data:
            continue
        array = data[name].transpose(..., "prompt")
        places = [d for d in array.dims if d != "prompt"]
        stacked = array.stack(cell=places) if places else array.expand_dims(cell=[0])
        for i, row in enumerate(stacked.transpose("cell", "prompt").values):
            at = dict(zip(places, stacked.cell.values[i], strict=True)) if places else {}
            where = {units.get(k, str(k)): v for k, v in at.items()}
            where = {"matrix": part or where.get("matrix"), **where}
            found.append({**where, "part": "quadrature" if name == "gap" else where.get("part")})
            values.append(row)
    table: Any = pd.DataFrame(found)
    table = pd.concat([table, _stats(store, np.stack(values), data.cluster.values, sign=1)], axis=1)
    if (table["matrix"] == "mlp").any():  # what is none of the three is mostly nothing
        table = table[(table["matrix"] != "mlp") | (table["value"] != 0)]
    order = ["matrix", *WHERE]
    first = [c for c in order if c in table]
    return tables.integers(table[[*first, *table.columns.drop(first)]].reset_index(drop=True))


def _stats(store: Store, values: np.ndarray, cluster: np.ndarray, sign: int) -> "pd.DataFrame":
    """Intervals, shares, p and q of rows [row, prompt] in nats of log_prob, one FDR family."""
    import pandas as pd

    table = tables.forgetting(store)
    lost = tables.forgotten(table, "log_prob")
    f = change(store.get("forgetting").score).sel(metric="log_prob").values
    floor = float(default_floor("log_prob", float(np.mean(f)), lost))
    found = summarise(
        values,
        cluster,
        floor=floor,
        fdr_axes=(0,),
        forgetting=sign * f[None],
        forgetting_significant=lost,
    )
    names = {"effect": "value"}
    frame = pd.DataFrame({names.get(k, k): v for k, v in found.items()})
    return frame.assign(unit="nats")


def attribution(store: Store) -> "pd.DataFrame":
    """One row per site, metric, direction, layer and head: the first-order estimate, and the exact
    effect where it was run."""
    import pandas as pd

    found = []
    for name in store.finished:
        if not name.startswith("attribution/"):
            continue
        site = name.removeprefix("attribution/")
        data = store.get(name).effect
        table = _intervals(data, "nats").assign(site=site, method=store.get(name).attrs["method"])
        if store.has(f"patching/{site}"):
            exact = store.get(f"patching/{site}").effect.mean("prompt")
            exact = exact.sel(metric=data.metric).to_dataframe(name="exact").reset_index()
            keys = [d for d in data.dims if d != "prompt"]
            table = table.merge(exact[[*keys, "exact"]], on=keys, how="left")
        found.append(table)
    return tables.integers(pd.concat(found, ignore_index=True))


def _intervals(data: "xr.DataArray", unit: str, over: str = "prompt") -> "pd.DataFrame":
    """Mean and 95 % interval over prompts, the other dimensions as columns."""
    import pandas as pd
    import xarray as xr

    places = [d for d in data.dims if d != over]
    values = data.transpose(*places, over).values
    cluster = data.cluster.values if "cluster" in data.coords else np.arange(values.shape[-1])
    got = dict(zip(("value", "low", "high"), interval(values, cluster), strict=True))
    if not places:
        return pd.DataFrame([{k: float(v) for k, v in got.items()} | {"unit": unit}])
    labelled = xr.Dataset(
        {k: (places, v) for k, v in got.items()},
        coords={d: data[d].values for d in places if d in data.coords},
    )
    return labelled.to_dataframe().reset_index().assign(unit=unit)


def drift(store: Store) -> "pd.DataFrame":
    """One row per place and quantity; `control_*`: of (post, its seed twin)."""
    table = _drift(store.get("drift"))
    if store.has("control_twin/drift"):
        control: Any = _drift(store.get("control_twin/drift"))
        keys = ["site", "depth", "layer", "head", "quantity"]
        control = control[[*keys, "value", "low", "high"]]
        control = control.rename(columns={k: f"control_{k}" for k in ("value", "low", "high")})
        table = table.merge(control, on=keys, how="left")
    return tables.integers(table)


def _drift(data: "xr.Dataset") -> "pd.DataFrame":
    import pandas as pd

    found = []
    for prefix in ("resid", "head"):
        cka = data[f"{prefix}_cka"].to_dataset("bound").to_dataframe().reset_index()
        found.append(cka.assign(quantity="cka", unit="1"))
        angle = data[f"{prefix}_angle"]
        plain = {
            "procrustes": (data[f"{prefix}_procrustes"], "1"),
            "angle_median": (angle.median("angle"), "degree"),
            "angle_largest": (angle.max("angle"), "degree"),
            "rank_pre": (data[f"{prefix}_rank"].sel(at="pre", drop=True), "directions"),
            "rank_post": (data[f"{prefix}_rank"].sel(at="post", drop=True), "directions"),
        }
        for name, (array, unit) in plain.items():
            table = array.to_dataframe(name="value").reset_index()
            found.append(table.assign(quantity=name, unit=unit))
        found.append(_intervals(data[f"{prefix}_shift"], "1").assign(quantity="shift"))
    table = pd.concat(found, ignore_index=True)
    table["site"] = table["site"].fillna("resid")
    order = ["site", "depth", "layer", "head", "quantity", "value", "low", "high", "unit"]
    return table.reindex(columns=order)


def readout(store: Store) -> "pd.DataFrame":
    """One row per quantity, probe and depth, with the depth's verdict."""
    import pandas as pd

    data = store.get("readout")
    found = [
        _intervals(data[name], unit).assign(quantity=name)
        for name, unit in (("score", "1"), ("rank", "place"))
    ]
    table = pd.concat(found, ignore_index=True)
    word = dict(zip(data.depth.values.tolist(), data.verdict.values.tolist(), strict=True))
    return table.assign(verdict=[word[d] for d in table["depth"]])


@tables.once
def interference(store: Store) -> "pd.DataFrame":
    """One row per point of the line, cell and quantity, and sums over cells: by matrix and layer
    (no unit), by matrix (no layer), and in all (matrix `all`)."""
    import pandas as pd

    from mechforget.measures.interference import summary

    data = store.get("interference")
    gram, task = data.gram.values, data.task.values
    part, layer, unit = (data[name].values for name in ("part", "layer", "unit"))
    groups: dict[tuple[Any, ...], np.ndarray] = {}
    for key in sorted({(p, int(a), -1) for p, a in zip(part, layer, strict=True)}):
        groups[key] = (part == key[0]) & (layer == key[1])
    for p in np.unique(part):
        groups[p, -1, -1] = part == p
    groups["all", -1, -1] = np.ones(len(part), bool)
    sums = np.stack([gram[:, mask].sum(1) for mask in groups.values()], 1)
    keys = [*zip(part, layer.tolist(), unit.tolist(), strict=True), *groups]
    every = np.concatenate([gram, sums], 1)
    seen: dict[tuple[Any, ...], int] = {k: i for i, k in enumerate(keys)}  # the last of twins
    chosen = sorted(seen.values())
    found = []
    got = summary(every[:, chosen], task, seed=int(data.attrs.get("seed", 0)))
    units = {"dot": "nats² per weight²"}
    for name in ("dot", "cosine", "corrected", "conflict", "reliability"):
        null = {"cosine": "null_cosine", "conflict": "null_conflict"}.get(name)
        for a, at in enumerate(data["at"].values):
            frame = pd.DataFrame([keys[i] for i in chosen], columns=["matrix", "layer", "unit_of"])
            ends = dict(zip(("value", "low", "high"), (x[a] for x in got[name]), strict=True))
            if null:
                ends |= {"null_low": got[null][1][a], "null_high": got[null][2][a]}
            frame = frame.assign(at=at, quantity=name, **ends, p=got["p"][0][a])
            found.append(frame.assign(unit=units.get(name, "1")))
    table = pd.concat(found, ignore_index=True)
    for column in ("layer", "unit_of"):
        table[column] = table[column].where(table[column] >= 0).astype("Int64")
    table = table.rename(columns={"unit_of": "cell"})
    return table.reindex(
        columns=["at", "matrix", "layer", "cell", "quantity", "value", "low", "high", "null_low",
                 "null_high", "p", "unit"]
    )  # fmt: skip


def landscape(store: Store) -> "pd.DataFrame":
    """Losses along the line (task old, new), barriers, sharpness, curvature and its ratios."""
    import pandas as pd

    from mechforget.measures.landscape import flattening

    found = []
    for task, name in (("old", "landscape/line"), ("new", "landscape/line_new")):
        if store.has(name):
            data = store.get(name)
            found.append(_intervals(data.loss, "nats").assign(task=task, quantity="loss"))
            ends = dict(zip(("value", "low", "high"), data.barrier.values, strict=True))
            row = {"task": task, "quantity": "barrier", "t": float(data.barrier_at), "unit": "nats"}
            found.append(pd.DataFrame([row | ends]))
    if store.has("landscape/sharpness"):
        data = store.get("landscape/sharpness")
        found.append(_with_error(data, "sharpness", "nats"))
    if store.has("landscape/curvature"):
        data = store.get("landscape/curvature")
        unit = "nats per weight²"
        top = data.eigenvalue.to_dataframe(name="value").reset_index()
        spread = data.residual.to_dataframe(name="e").reset_index()["e"]
        top = top.assign(low=top["value"] - spread, high=top["value"] + spread)
        found.append(top.assign(quantity="eigenvalue", unit=unit))
        found += [_with_error(data, name, unit) for name in ("trace", "gauss_newton")]
        modules = _with_error(data, "module_trace", unit)
        found.append(modules)
        ratio = flattening(data).ratio.to_dataset("bound").to_dataframe().reset_index()
        ratio = ratio.rename(columns={"estimate": "value"}).assign(
            quantity="post / pre of " + ratio["quantity"].astype(str), unit="1"
        )
        found.append(ratio)
    table = pd.concat(found, ignore_index=True).assign(
        task=lambda t: t["task"].fillna("old") if "task" in t else "old"
    )
    order = ["quantity", "task", "at", "t", "rank", "module", "value", "low", "high", "unit"]
    return table.reindex(columns=order)


def _with_error(data: "xr.Dataset", name: str, unit: str) -> "pd.DataFrame":
    """An estimate with 1.96 standard errors either way."""
    value, error = data[name], 1.96 * data[f"{name}_se"]
    table = value.to_dataframe(name="value").reset_index()
    table["low"] = (value - error).values.ravel()
    table["high"] = (value + error).values.ravel()
    return table.assign(quantity=name, unit=unit)


def routing(store: Store) -> "pd.DataFrame":
    """Per layer of a mixture: divergence, overlap, load, angles, and what routing restores."""
    import pandas as pd

    data = store.get("routing")
    found = [
        _intervals(data[name], unit).assign(quantity=name)
        for name, unit in (("js", "bit"), ("overlap", "share"))
    ]
    for name, unit in (
        ("load_js", "bit"),
        ("load_entropy", "bit"),
        ("expert_load", "share"),
        ("angle", "degree"),
    ):
        table = data[name].to_dataframe(name="value").reset_index()
        found.append(table.assign(quantity=name, unit=unit))
    if store.has("routing_restored"):
        restored = store.get("routing_restored")
        for name in ("effect", "every"):
            table = _intervals(restored[name], "nats")
            found.append(table.assign(quantity=f"routing restored ({name})"))
    table = pd.concat(found, ignore_index=True)
    order = ["quantity", "metric", "direction", "at", "layer", "expert", "value", "low", "high",
             "unit"]  # fmt: skip
    return tables.integers(table.reindex(columns=order))


def weights(store: Store) -> "pd.DataFrame":
    """One row per tensor (kind tensor), head (of W_Q, W_O) or group (of W_K, W_V), and expert."""
    import pandas as pd

    data = store.get("weights")
    found: list[Any] = []
    for kind, first in (("tensor", "tensor_relative"), ("head", "relative"),
                        ("expert", "expert_relative")):  # fmt: skip
        if first not in data:
            continue
        prefix, dims = first.removesuffix("relative"), data[first].dims
        mine = [
            str(name)
            for name, array in data.data_vars.items()
            if str(name).startswith(prefix) and array.dims == dims
        ]
        mine.sort(key=lambda name: (NUMBERS.index(n) if (n := name.removeprefix(prefix)) in NUMBERS
                                    else len(NUMBERS), name))  # fmt: skip
        frame = data[mine].to_dataframe().reset_index()
        frame = frame.rename(columns={name: name.removeprefix(prefix) for name in mine})
        frame = frame.rename(columns={"tensor_layer": "layer", "tensor_matrix": "matrix"})
        frame = frame.dropna(subset=["relative"]).assign(kind=kind)
        if kind == "head":
            of_group = frame["matrix"].isin(["W_K", "W_V"])
            frame["kind"] = np.where(of_group, "group", "head")
            frame["group"], frame["head"] = (
                frame["head"].astype("Int64").where(mine) for mine in (of_group, ~of_group)
            )
        found.append(frame)
    table: Any = pd.concat(found, ignore_index=True)
    order = ("kind", "tensor", "matrix", "projection", "layer", "head", "group", "expert")
    first = [c for c in order if c in table]
    return tables.integers(table[[*first, *table.columns.drop(first)]])


def similarity(store: Store) -> "pd.DataFrame":
    """Of the old and the new task: CKA by depth, cosines, and of their gradients at pre."""
    import pandas as pd

    data = store.get("similarity")
    cka = data.cka.to_dataset("bound").to_dataframe().reset_index().assign(quantity="cka")
    cosine = data.cosine.to_dataset("bound").to_dataframe().reset_index()
    cosine["quantity"] = "cosine of " + cosine["of"].astype(str)
    found = [cka, cosine.drop(columns="of")]
    if store.has("interference"):
        found.append(_gradients(store.get("interference")))
    table = pd.concat(found, ignore_index=True).assign(unit="1")
    return tables.integers(
        table.reindex(columns=["quantity", "depth", "value", "low", "high", "unit"])
    )


def _gradients(data: "xr.Dataset") -> "pd.DataFrame":
    import pandas as pd

    from mechforget.measures.similarity import fisher_overlap, gradient_cosine

    whole = data.whole.isel({"at": 0}).values
    old, new = (data.whose.values == name for name in ("old", "new"))
    blocks = whole[np.ix_(old, old)], whole[np.ix_(old, new)], whole[np.ix_(new, new)]
    clusters = data.prompt_cluster.values[old], data.prompt_cluster.values[new]
    rows = []
    for name, of in (("gradient cosine", gradient_cosine), ("Fisher overlap", fisher_overlap)):
        got = of(*blocks, *clusters)
        ends = dict(zip(("value", "low", "high"), map(float, got), strict=True))
        rows.append({"quantity": name, **ends})
    return pd.DataFrame(rows)
