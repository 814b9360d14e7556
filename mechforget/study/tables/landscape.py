"""The losses between the checkpoints, barriers, sharpness and curvature."""

from typing import TYPE_CHECKING, Any

from mechforget.measures.forgetting import AT
from mechforget.measures.landscape import flattening
from mechforget.study.store import Store
from mechforget.study.tables.frames import Band, band, intervals

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def landscape(store: Store) -> "pd.DataFrame":
    """Losses along the line (task old, new), barriers, sharpness, curvature and its ratios."""
    import pandas as pd

    found = []
    for task, name in (("old", "landscape/line"), ("new", "landscape/line_new")):
        if store.has(name):
            data = store.get(name)
            found.append(intervals(data.loss, "nats").assign(task=task, quantity="loss"))
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


def line(data: "xr.Dataset") -> dict[str, Any]:
    """The loss between the checkpoints, with intervals, and its barrier; from `landscape/line`."""
    return {
        "t": data.t.values,
        "loss": band(data.loss.transpose("t", "prompt").values, data.cluster.values),
        "barrier": data.barrier.values,
        "barrier_at": float(data.barrier_at),
    }


def two(value: "xr.DataArray", error: "xr.DataArray") -> Band:
    """A number before and after, with its standard errors."""
    return {"value": value.sel(at=list(AT)).values, "se": error.sel(at=list(AT)).values}


def curvature(data: "xr.Dataset") -> dict[str, Any]:
    """Traces, the largest eigenvalue and what they rose by; from `landscape/curvature`."""
    ratio = flattening(data).ratio
    first = data.isel(rank=0)
    modules = (
        data.module_trace.transpose("at", "module"),
        data.module_trace_se.transpose("at", "module"),
    )
    return {
        "note": data.attrs["note"],
        "prompts": data.sizes["chosen"],
        "trace": two(data.trace, data.trace_se),
        "gauss_newton": two(data.gauss_newton, data.gauss_newton_se),
        "eigenvalue": two(first.eigenvalue, first.residual),
        "flattening": {str(q): ratio.sel(quantity=q).values for q in ratio["quantity"].values},
        "modules": {
            "part": data.part.values.astype(str),
            "layer": [None if x < 0 else int(x) for x in data.layer.values],
            "value": modules[0].values,
            "se": modules[1].values,
        },
    }
