"""The bundle's part for the mechanisms: drift, interference, landscape, ledger, readout, routing.

Each function reads what a finished run stored, and gives plain arrays with their intervals; None
where the run didn't measure it. All arithmetic is done here: the page only lays numbers out.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.measures.forgetting import AT
from mechforget.measures.landscape import flattening
from mechforget.measures.ledger import by_head
from mechforget.statistics import interval, q_values
from mechforget.study.mechanisms import WHERE
from mechforget.study.mechanisms import interference as fights
from mechforget.study.mechanisms import origins as reaching
from mechforget.study.store import Store

if TYPE_CHECKING:
    import xarray as xr

SITES = ("z", "head_out")
PARTS = ("W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out", "mlp", "expert", "router", "other")
WHOLE = ("embed", "unembed", "final")  # of no layer
QUANTITIES = ("cosine", "corrected", "conflict")
NULLS = ("cosine", "conflict")
ORIGINS = 10  # changes of weights that are listed
SHOWN = ("W_Q", "W_K", "W_V", "W_O", "MLP", "other")  # of the ledger
Band = dict[str, np.ndarray]


def band(values: Any, cluster: Any) -> Band:
    """Mean over prompts (the last axis) and its 95 % interval, flat."""
    found = interval(values, cluster)
    return triple(found.estimate, found.low, found.high)


def triple(value: Any, low: Any, high: Any) -> Band:
    return {"value": np.ravel(value), "low": np.ravel(low), "high": np.ravel(high)}


def drift(store: Store) -> dict[str, Any] | None:
    if not store.has("drift"):
        return None
    data = store.get("drift")
    found = {"n": data.attrs["n"], "caveat": data.attrs["caveat"], **_by_depth(data)}
    twin = "control_twin/drift"
    found["twin"] = _by_depth(store.get(twin)) if store.has(twin) else None
    found["heads"] = {site: _of_heads(data.sel(site=site)) for site in SITES}
    return found


def _by_depth(data: "xr.Dataset") -> dict[str, Any]:
    angle = data.resid_angle.transpose("depth", "angle").values
    rank = data.resid_rank.transpose("at", "depth")
    return {
        "depth": data.depth.values,
        "cka": triple(*data.resid_cka.transpose("bound", "depth").sel(bound=_ENDS).values),
        "procrustes": data.resid_procrustes.values,
        "angle_median": _over(np.nanmedian, angle),
        "angle_largest": _over(np.nanmax, angle),
        "k": data.resid_k.values,
        **{f"rank_{at}": rank.sel(at=at).values for at in AT},
        "shift": band(data.resid_shift.transpose("depth", "prompt"), data.cluster.values),
    }


_ENDS = ["value", "low", "high"]


def _of_heads(data: "xr.Dataset") -> dict[str, Any]:
    """Layer-major."""
    flat = ("layer", "head")
    angle = data.head_angle.transpose(*flat, "angle").values.reshape(-1, data.sizes["angle"])
    rank = data.head_rank.transpose("at", *flat)
    return {
        "cka": triple(*data.head_cka.transpose("bound", *flat).sel(bound=_ENDS).values),
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


def interference(store: Store) -> dict[str, Any] | None:
    """By matrix type, and by matrix type and layer: the table's sums over cells."""
    if not store.has("interference"):
        return None
    data, table = store.get("interference"), fights(store)
    sums: Any = table[table["cell"].isna()]
    there = set(sums["matrix"])
    named = [p for p in (*PARTS, *WHOLE) if p in there]
    in_layers = [p for p in named if p in PARTS]
    layers = sorted({int(x) for x in data.layer.values if x >= 0})
    parts = [("all", -1), *((p, -1) for p in named)]
    cells = [(p, n) for p in in_layers for n in layers]

    def of(at: float, keys: list[tuple[str, int]]) -> dict[str, Any]:
        here = sums[sums["at"] == at].assign(layer=sums["layer"].fillna(-1))
        found: dict[str, Any] = {}
        for name in (*QUANTITIES, "dot"):
            rows = here[here["quantity"] == name].set_index(["matrix", "layer"]).reindex(keys)
            found[name] = triple(*(rows[end].to_numpy(float) for end in _ENDS))
            if name in NULLS:
                ends = {end: rows[f"null_{end}"].to_numpy(float) for end in ("low", "high")}
                found[f"null_{name}"] = ends
            if name == "conflict":  # a layer may lack this matrix, or its gradient
                p = rows["p"].where(rows["value"].notna()).to_numpy(float)
                found |= {"p": p.tolist(), "q": q_values(p, axes=(0,)).tolist()}
        return found

    return {
        "minibatches": {str(t): int((data.task == t).sum()) for t in ("old", "new")},
        "layers": layers,
        "points": [
            {
                "at": float(t),
                "parts": {"names": ["all", *named], **of(float(t), parts)},
                "map": {"names": in_layers, **of(float(t), cells)},
            }
            for t in data["at"].values
        ],
    }


def landscape(store: Store) -> dict[str, Any] | None:
    found: dict[str, Any] = {"lines": {}, "curvature": None, "sharpness": None}
    for task, name in (("old", "landscape/line"), ("new", "landscape/line_new")):
        if store.has(name):
            found["lines"][task] = _line(store.get(name))
    if store.has("landscape/curvature"):
        found["curvature"] = _curvature(store.get("landscape/curvature"))
    if store.has("landscape/sharpness"):
        data = store.get("landscape/sharpness")
        found["sharpness"] = _two(data.sharpness, data.sharpness_se)
    return found if found["lines"] or found["curvature"] or found["sharpness"] else None


def _line(data: "xr.Dataset") -> dict[str, Any]:
    return {
        "t": data.t.values,
        "loss": band(data.loss.transpose("t", "prompt").values, data.cluster.values),
        "barrier": data.barrier.values,
        "barrier_at": float(data.barrier_at),
    }


def _two(value: "xr.DataArray", error: "xr.DataArray") -> Band:
    """Before and after, with their standard errors."""
    return {"value": value.sel(at=list(AT)).values, "se": error.sel(at=list(AT)).values}


def _curvature(data: "xr.Dataset") -> dict[str, Any]:
    ratio = flattening(data).ratio
    first = data.isel(rank=0)
    modules = (
        data.module_trace.transpose("at", "module"),
        data.module_trace_se.transpose("at", "module"),
    )
    return {
        "note": data.attrs["note"],
        "prompts": data.sizes["chosen"],
        "trace": _two(data.trace, data.trace_se),
        "gauss_newton": _two(data.gauss_newton, data.gauss_newton_se),
        "eigenvalue": _two(first.eigenvalue, first.residual),
        "flattening": {str(q): ratio.sel(quantity=q).values for q in ratio["quantity"].values},
        "modules": {
            "part": data.part.values.astype(str),
            "layer": [None if x < 0 else int(x) for x in data.layer.values],
            "value": modules[0].values,
            "se": modules[1].values,
        },
    }


def ledger(store: Store) -> dict[str, Any] | None:
    """Shares of the rise of the old task's loss, nats: by layer and part, by head, of no layer."""
    if not store.has("ledger"):
        return None
    data = store.get("ledger")
    cluster, n = data.cluster.values, data.sizes["prompt"]
    layers = data.sizes["layer"]
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
    cells = np.stack([by[name] for name in SHOWN])  # [part, layer, prompt]
    rest = {str(p): data.rest.sel(part=p).values for p in data.part.values}
    if "routing" in data:
        rest["routing"] = data.routing.values
    whole = {"change": data.change.values, "gap": data.gap.values}
    of_head = by_head(data).transpose("layer", "head", "prompt").values
    return {
        "n": len(np.unique(cluster)),
        "parts": list(SHOWN),
        "layers": list(range(layers)),
        "cells": band(cells, cluster),
        "by_layer": band(cells.sum(0), cluster),
        "by_part": band(cells.sum(1), cluster),
        "rest": {"names": list(rest), **band(np.stack(list(rest.values())), cluster)},
        "whole": {"names": list(whole), **band(np.stack(list(whole.values())), cluster)},
        "heads": band(of_head.reshape(-1, n), cluster),
        "nodes": int(data.nodes.max()),
        "origins": _origins(store),
    }


def _origins(store: Store) -> dict[str, Any] | None:
    """The changes of weights that reach the most expressed head, the largest of them."""
    if not store.has("origins"):
        return None
    table: Any = reaching(store)
    size = table["value"].abs()
    first = size[size > 0].sort_values(ascending=False, kind="stable").index[:ORIGINS]
    top = table.loc[first]
    return {
        "of": [int(table["of_layer"].iloc[0]), int(table["of_head"].iloc[0])],
        "change": float(table["value"].sum()),
        "cells": [_cell(row) for row in top.to_dict("records")],
        **triple(*(top[end].to_numpy(float) for end in _ENDS)),
    }


def _cell(row: dict[str, Any]) -> str:
    """L0 W_V of group 2."""
    import pandas as pd

    there = {k: row[k] for k in WHERE if k in row and not pd.isna(row[k])}
    layer = f"L{there.pop('layer')} " if "layer" in there else ""
    part = f" ({there.pop('part')})" if "part" in there else ""
    if row["matrix"] in there:  # an expert is its own name
        return f"{layer}{row['matrix']} {there[row['matrix']]}"
    return layer + row["matrix"] + "".join(f" of {kind} {i}" for kind, i in there.items()) + part


def readout(store: Store) -> dict[str, Any] | None:
    if not store.has("readout"):
        return None
    data = store.get("readout")
    score = data.score.transpose("probe", "depth", "prompt").values
    return {
        "n": data.attrs["n"],
        "caveat": data.attrs["caveat"],
        "candidates": data.attrs["candidates"],
        "tokens": data.attrs["tokens"],
        "depth": data.depth.values,
        "probes": {
            str(name): band(score[i], data.cluster.values)
            for i, name in enumerate(data.probe.values)
        },
        "verdict": data.verdict.values.astype(str),
    }


def routing(store: Store) -> dict[str, Any] | None:
    if not store.has("routing"):
        return None
    data = store.get("routing")
    cluster = data.cluster.values
    load = data.expert_load.transpose("at", "layer", "expert")
    restored = None
    if store.has("routing_restored"):
        given = store.get("routing_restored").sel(metric="log_prob")
        restored = {
            str(d): {
                "layer": band(
                    given.effect.sel(direction=d).transpose("layer", "prompt").values,
                    given.cluster.values,
                ),
                "every": band(given.every.sel(direction=d).values, given.cluster.values),
            }
            for d in given.direction.values
        }
    entropy = data.load_entropy.transpose("at", "layer")
    return {
        "rule": data.attrs["rule"],
        "layers": data.layer.values,
        "experts": data.sizes["expert"],
        "overlap": band(data.overlap.transpose("layer", "prompt").values, cluster),
        "js": band(data.js.transpose("layer", "prompt").values, cluster),
        **{f"load_{at}": np.ravel(load.sel(at=at).values) for at in AT},
        "load_change": np.ravel(load.sel(at=AT[1]).values - load.sel(at=AT[0]).values),
        "load_js": data.load_js.values,
        **{f"load_entropy_{at}": entropy.sel(at=at).values for at in AT},
        "angle": np.ravel(data.angle.transpose("layer", "expert").values),
        "restored": restored,
    }
