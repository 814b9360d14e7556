"""Where the gradients of the two tasks oppose each other: by cell, layer and matrix."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.statistics import q_values
from mechforget.statistics.minibatches import summary
from mechforget.study.store import Store
from mechforget.study.tables.frames import once, triple

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out", "mlp", "expert", "router", "other")
WHOLE = ("embed", "unembed", "final")  # of no layer
QUANTITIES = ("cosine", "corrected", "conflict")
NULLS = ("cosine", "conflict")


@once
def interference(store: Store) -> "pd.DataFrame":
    """One row for each point of the line, cell and quantity, and for sums over cells: by matrix and
    layer (`cell` is empty), by matrix (`layer` is empty too), and over all (matrix `all`)."""
    import pandas as pd

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
    seen: dict[tuple[Any, ...], int] = {
        k: i for i, k in enumerate(keys)
    }  # of keys that occur twice, the last
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


def sums(store: Store) -> dict[str, Any]:
    """The table's sums over cells: for each point of the line `parts`, by matrix and in all, and
    `map`, by matrix and layer; of conflict rates also p, and q over the parts or over the map."""
    data, table = store.get("interference"), interference(store)
    cells: Any = table[table["cell"].isna()]
    there = set(cells["matrix"])
    named = [p for p in (*PARTS, *WHOLE) if p in there]
    in_layers = [p for p in named if p in PARTS]
    layers = sorted({int(x) for x in data.layer.values if x >= 0})
    parts = [("all", -1), *((p, -1) for p in named)]
    places = [(p, n) for p in in_layers for n in layers]

    def of(at: float, keys: list[tuple[str, int]]) -> dict[str, Any]:
        here = cells[cells["at"] == at].assign(layer=cells["layer"].fillna(-1))
        found: dict[str, Any] = {}
        for name in (*QUANTITIES, "dot"):
            rows = here[here["quantity"] == name].set_index(["matrix", "layer"]).reindex(keys)
            found[name] = triple(*(rows[end].to_numpy(float) for end in ("value", "low", "high")))
            if name in NULLS:
                ends = {end: rows[f"null_{end}"].to_numpy(float) for end in ("low", "high")}
                found[f"null_{name}"] = ends
            if name == "conflict":  # a layer may lack this matrix, or its gradient
                p = rows["p"].where(rows["value"].notna()).to_numpy(float)
                found |= {"p": p.tolist(), "q": q_values(p, axes=(0,)).tolist()}
        return found

    return {
        "layers": layers,
        "points": [
            {
                "at": float(t),
                "parts": {"names": ["all", *named], **of(float(t), parts)},
                "map": {"names": in_layers, **of(float(t), places)},
            }
            for t in data["at"].values
        ],
    }
