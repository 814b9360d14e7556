"""What all tables use: labelled arrays as data frames, one row for each place."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING

import numpy as np

from mechforget.statistics import interval
from mechforget.study.store import Store

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def once(table: "Callable[..., pd.DataFrame]") -> "Callable[..., pd.DataFrame]":
    """A finished result never changes, so its table is computed once for each open store, and again
    after another result was stored."""

    @wraps(table)
    def found(store: Store, *names: str) -> "pd.DataFrame":
        key = (table.__name__, *names)
        if key not in store.tables:
            store.tables[key] = table(store, *names)
        return store.tables[key].copy()

    return found


def long(data: "xr.Dataset", **columns: str) -> "pd.DataFrame":
    """One row for each combination of the dimensions; `columns` are added to all rows."""
    table = data.to_dataframe().reset_index() if data.sizes else data.to_pandas().to_frame().T
    return table.assign(**columns)


def integers(table: "pd.DataFrame") -> "pd.DataFrame":
    """Layers, heads and the like as integers that may be missing."""
    for column in ("layer", "head", "group", "expert", "position"):
        if column in table:
            table[column] = table[column].astype("Int64")
    return table


def intervals(data: "xr.DataArray", unit: str, over: str = "prompt") -> "pd.DataFrame":
    """Mean and 95 % interval over prompts (or `over`), the other dimensions as columns. Arrays
    without that dimension have a value and no interval."""
    import pandas as pd
    import xarray as xr

    places = [d for d in data.dims if d != over]
    if over in data.dims:
        values = data.transpose(*places, over).values
        cluster = data.cluster.values if "cluster" in data.coords else np.arange(values.shape[-1])
        got = dict(zip(("value", "low", "high"), interval(values, cluster), strict=True))
    else:
        values = data.values.astype(float)
        got = {"value": values, "low": np.full_like(values, np.nan)}
        got["high"] = got["low"]
    if not places:
        return pd.DataFrame([{k: float(v) for k, v in got.items()} | {"unit": unit}])
    labelled = xr.Dataset(
        {k: (places, v) for k, v in got.items()},
        coords={d: data[d].values for d in places if d in data.coords},
    )
    return labelled.to_dataframe().reset_index().assign(unit=unit)


Band = dict[str, np.ndarray]


def band(values: "np.ndarray", cluster: "np.ndarray") -> Band:
    """Mean over prompts (the last axis) and its 95 % interval, flat."""
    found = interval(values, cluster)
    return triple(found.estimate, found.low, found.high)


def triple(value: "np.ndarray", low: "np.ndarray", high: "np.ndarray") -> Band:
    """An estimate and the ends of its interval, flat."""
    return {"value": np.ravel(value), "low": np.ravel(low), "high": np.ravel(high)}
