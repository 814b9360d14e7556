"""How far representations moved, and whether the answer is erased or misread."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.measures.forgetting import AT
from mechforget.study.store import Store
from mechforget.study.tables.frames import Band, band, integers, intervals, triple

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

BOUNDS = ["value", "low", "high"]


def drift(store: Store) -> "pd.DataFrame":
    """One row for each place and quantity. Columns `control_*` hold the same for (post, its seed
    twin)."""
    table = _drift(store.get("drift"))
    if store.has("control_twin/drift"):
        control: Any = _drift(store.get("control_twin/drift"))
        keys = ["site", "depth", "layer", "head", "quantity"]
        control = control[[*keys, "value", "low", "high"]]
        control = control.rename(columns={k: f"control_{k}" for k in ("value", "low", "high")})
        table = table.merge(control, on=keys, how="left")
    return integers(table)


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
        found.append(intervals(data[f"{prefix}_shift"], "1").assign(quantity="shift"))
    table = pd.concat(found, ignore_index=True)
    table["site"] = table["site"].fillna("resid")
    order = ["site", "depth", "layer", "head", "quantity", "value", "low", "high", "unit"]
    return table.reindex(columns=order)


def readout(store: Store) -> "pd.DataFrame":
    """One row per quantity, probe and depth, with the depth's verdict."""
    import pandas as pd

    data = store.get("readout")
    found = [
        intervals(data[name], unit).assign(quantity=name)
        for name, unit in (("score", "1"), ("rank", "place"))
    ]
    table = pd.concat(found, ignore_index=True)
    word = dict(zip(data.depth.values.tolist(), data.verdict.values.tolist(), strict=True))
    return table.assign(verdict=[word[d] for d in table["depth"]])


def scores(data: "xr.Dataset") -> dict[str, Band]:
    """Probe -> its score at each depth, with intervals, from a `readout` result."""
    score = data.score.transpose("probe", "depth", "prompt").values
    return {
        str(name): band(score[i], data.cluster.values) for i, name in enumerate(data.probe.values)
    }


def by_depth(data: "xr.Dataset") -> dict[str, Any]:
    """Drift of the residual stream at each depth, from a `drift` result; CKA and shift with their
    intervals."""
    angle = data.resid_angle.transpose("depth", "angle").values
    rank = data.resid_rank.transpose("at", "depth")
    return {
        "depth": data.depth.values,
        "cka": triple(*data.resid_cka.transpose("bound", "depth").sel(bound=BOUNDS).values),
        "procrustes": data.resid_procrustes.values,
        "angle_median": _over(np.nanmedian, angle),
        "angle_largest": _over(np.nanmax, angle),
        "k": data.resid_k.values,
        **{f"rank_{at}": rank.sel(at=at).values for at in AT},
        "shift": band(data.resid_shift.transpose("depth", "prompt"), data.cluster.values),
    }


def of_heads(data: "xr.Dataset") -> dict[str, Any]:
    """Drift of each head's output, from a `drift` result of one site; layer by layer."""
    flat = ("layer", "head")
    angle = data.head_angle.transpose(*flat, "angle").values.reshape(-1, data.sizes["angle"])
    rank = data.head_rank.transpose("at", *flat)
    return {
        "cka": triple(*data.head_cka.transpose("bound", *flat).sel(bound=BOUNDS).values),
        "angle_median": _over(np.nanmedian, angle),
        "angle_largest": _over(np.nanmax, angle),
        **{f"rank_{at}": np.ravel(rank.sel(at=at).values) for at in AT},
        "shift": np.ravel(data.head_shift.mean("prompt").transpose(*flat).values),
    }


def _over(statistic: Any, angle: np.ndarray) -> np.ndarray:
    """Over the last axis, NaN where all are."""
    found = np.full(len(angle), np.nan)
    some = np.isfinite(angle).any(1)
    found[some] = statistic(angle[some], axis=1)
    return found
