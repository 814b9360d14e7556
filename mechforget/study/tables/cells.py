"""Tables of the integrated gradients over the weights (the forgetting ledger): each cell of the
weights, and sums by layer, part and head."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.measures.forgetting import change
from mechforget.measures.ledger import by_head
from mechforget.statistics import default_floor, summarise
from mechforget.study.store import Store
from mechforget.study.tables.forgetting import forgetting, forgotten
from mechforget.study.tables.frames import band, integers

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

WHERE = ("part", "layer", "head", "group", "expert")
PARTS = ("W_Q", "W_K", "W_V", "W_O", "MLP", "other")  # that a layer's sum is made of


def ledger(store: Store) -> "pd.DataFrame":
    """One row for each cell of the weights: what its change added to the old task's loss, in nats.
    Together with the rows of `rest` (embeddings, unembedding, last norm, and the error of the
    quadrature) they sum to the change of the loss, which is the forgetting. Shares are given if the
    forgetting is significant."""
    return _cells(store, store.get("ledger"))


def origins(store: Store) -> "pd.DataFrame":
    """As `ledger`, but of what one head writes, the most expressed one (`of_layer`, `of_head`)."""
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
    return integers(table[[*first, *table.columns.drop(first)]].reset_index(drop=True))


def _stats(store: Store, values: np.ndarray, cluster: np.ndarray, sign: int) -> "pd.DataFrame":
    """Intervals, shares, p and q of rows [row, prompt] in nats of log_prob; all rows are one FDR
    family."""
    import pandas as pd

    table = forgetting(store)
    lost = forgotten(table, "log_prob")
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


def sums(data: "xr.Dataset") -> dict[str, Any]:
    """Of a ledger: `cells` [part of PARTS, layer], `by_layer`, `by_part`, `heads` [layer, head],
    each with its interval; `rest` of what is in no layer, by `rest_names`; `whole`: the change of
    the loss and the quadrature's gap. Nats."""
    cluster, n = data.cluster.values, data.sizes["prompt"]
    other = data.others.transpose("layer", "prompt").values.copy()
    mlp = data.mlps.sum("mlp_matrix").transpose("layer", "prompt").values.copy()
    if "experts" in data:
        at = data.moe_layer.values
        mlp[at] += data.experts.sum("expert").transpose("moe_layer", "prompt").values
        other[at] += data.routers.transpose("moe_layer", "prompt").values
    heads = data.heads.sum("head").transpose("matrix", "layer", "prompt")
    groups = data.groups.sum("group").transpose("kv_matrix", "layer", "prompt")
    by = {
        **{name: heads.sel(matrix=name).values for name in ("W_Q", "W_O")},
        **{name: groups.sel(kv_matrix=name).values for name in ("W_K", "W_V")},
        "MLP": mlp,
        "other": other,
    }
    cells = np.stack([by[name] for name in PARTS])  # [part, layer, prompt]
    rest = {str(p): data.rest.sel(part=p).values for p in data.part.values}
    if "routing" in data:
        rest["routing"] = data.routing.values
    of_head = by_head(data).transpose("layer", "head", "prompt").values
    return {
        "cells": band(cells, cluster),
        "by_layer": band(cells.sum(0), cluster),
        "by_part": band(cells.sum(1), cluster),
        "rest_names": list(rest),
        "rest": band(np.stack(list(rest.values())), cluster),
        "whole": band(np.stack([data.change.values, data.gap.values]), cluster),
        "heads": band(of_head.reshape(-1, n), cluster),
    }
