"""The bundle's part about mechanisms: drift, interference, landscape, ledger, readout, routing.

Each function lays out what the tables computed, as plain arrays with their intervals. It returns
None if the run did not measure it.
"""

from typing import Any

import numpy as np

from mechforget.study.store import Store
from mechforget.study.tables import cells, geometry
from mechforget.study.tables import interference as gradients
from mechforget.study.tables import landscape as surface
from mechforget.study.tables import routing as experts
from mechforget.study.tables.frames import triple

SITES = ("z", "head_out")
ORIGINS = 10  # changes of weights that are listed


def drift(store: Store) -> dict[str, Any] | None:
    if not store.has("drift"):
        return None
    data = store.get("drift")
    found = {"n": data.attrs["n"], "caveat": data.attrs["caveat"], **geometry.by_depth(data)}
    twin = "control_twin/drift"
    found["twin"] = geometry.by_depth(store.get(twin)) if store.has(twin) else None
    found["heads"] = {site: geometry.of_heads(data.sel(site=site)) for site in SITES}
    return found


def interference(store: Store) -> dict[str, Any] | None:
    """By matrix type, and by matrix type and layer: the table's sums over cells."""
    if not store.has("interference"):
        return None
    data = store.get("interference")
    of_tasks = {str(t): int((data.task == t).sum()) for t in ("old", "new")}
    return {"minibatches": of_tasks, **gradients.sums(store)}


def landscape(store: Store) -> dict[str, Any] | None:
    found: dict[str, Any] = {"lines": {}, "curvature": None, "sharpness": None}
    for task, name in (("old", "landscape/line"), ("new", "landscape/line_new")):
        if store.has(name):
            found["lines"][task] = surface.line(store.get(name))
    if store.has("landscape/curvature"):
        found["curvature"] = surface.curvature(store.get("landscape/curvature"))
    if store.has("landscape/sharpness"):
        data = store.get("landscape/sharpness")
        found["sharpness"] = surface.two(data.sharpness, data.sharpness_se)
    return found if found["lines"] or found["curvature"] or found["sharpness"] else None


def ledger(store: Store) -> dict[str, Any] | None:
    """The shares of the rise of the old task's loss, in nats: by layer and part, by head, and of
    what is in no layer."""
    if not store.has("ledger"):
        return None
    data = store.get("ledger")
    found = cells.sums(data)
    return {
        "n": len(np.unique(data.cluster.values)),
        "parts": list(cells.PARTS),
        "layers": list(range(data.sizes["layer"])),
        **{name: found[name] for name in ("cells", "by_layer", "by_part")},
        "rest": {"names": found["rest_names"], **found["rest"]},
        "whole": {"names": ["change", "gap"], **found["whole"]},
        "heads": found["heads"],
        "nodes": int(data.nodes.max()),
        "origins": _origins(store),
    }


def _origins(store: Store) -> dict[str, Any] | None:
    """The largest changes of weights that reach the most expressed head."""
    if not store.has("origins"):
        return None
    table: Any = cells.origins(store)
    size = table["value"].abs()
    first = size[size > 0].sort_values(ascending=False, kind="stable").index[:ORIGINS]
    top = table.loc[first]
    return {
        "of": [int(table["of_layer"].iloc[0]), int(table["of_head"].iloc[0])],
        "change": float(table["value"].sum()),
        "cells": [_cell(row) for row in top.to_dict("records")],
        **triple(*(top[end].to_numpy(float) for end in geometry.BOUNDS)),
    }


def _cell(row: dict[str, Any]) -> str:
    """The name of a cell, such as: L0 W_V of group 2."""
    import pandas as pd

    there = {k: row[k] for k in cells.WHERE if k in row and not pd.isna(row[k])}
    layer = f"L{there.pop('layer')} " if "layer" in there else ""
    part = f" ({there.pop('part')})" if "part" in there else ""
    if row["matrix"] in there:  # an expert is its own name
        return f"{layer}{row['matrix']} {there[row['matrix']]}"
    return layer + row["matrix"] + "".join(f" of {kind} {i}" for kind, i in there.items()) + part


def readout(store: Store) -> dict[str, Any] | None:
    if not store.has("readout"):
        return None
    data = store.get("readout")
    return {
        "n": data.attrs["n"],
        "caveat": data.attrs["caveat"],
        "candidates": data.attrs["candidates"],
        "tokens": data.attrs["tokens"],
        "depth": data.depth.values,
        "probes": geometry.scores(data),
        "verdict": data.verdict.values.astype(str),
    }


def routing(store: Store) -> dict[str, Any] | None:
    if not store.has("routing"):
        return None
    data = store.get("routing")
    return {
        "rule": data.attrs["rule"],
        "layers": data.layer.values,
        "experts": data.sizes["expert"],
        **experts.by_layer(store),
    }
