"""The bundle's part for what only all measures together say: claims, and do they agree on heads?"""

from typing import Any

import numpy as np

from mechforget.study.agreement import MEANING, agreement, correlations
from mechforget.study.claims import claims
from mechforget.study.mechanisms import interference as fights
from mechforget.study.store import Store
from mechforget.study.verdict import number, percent

# On a head's card, where the meaning is too long. What another part of the bundle shows of a head
# isn't said there again.
CARD = {
    "ledger": ("ledger: rise written in its weights", "nats"),
    "interference": ("interference (cosine at pre)", ""),
}


def board(store: Store) -> list[dict[str, Any]] | None:
    """One row per claim of the paper."""
    table: Any = claims(store)
    return table.to_dict("records") if len(table) else None


def agree(store: Store) -> dict[str, Any] | None:
    """Rank correlations over heads, each pair of measures once."""
    rows: Any = correlations(store)
    if not len(rows):
        return None
    names = list(dict.fromkeys([*rows["a"], *rows["b"]]))
    return {
        "names": names,
        "means": {name: MEANING.get(str(name), "") for name in names},
        "pairs": rows[["a", "b", "spearman", "low", "high", "n"]].to_dict("records"),
    }


def columns(store: Store) -> dict[str, dict[str, Any]]:
    """Layer-major, for the head's card."""
    table: Any = agreement(store)
    layers, heads = (store.manifest["model"][k] for k in ("layers", "heads"))
    found = {}
    for name, (label, unit) in CARD.items():
        if name not in table or not table[name].notna().any():
            continue
        values = np.full(layers * heads, np.nan)
        values[(table["layer"] * heads + table["head"]).astype(int)] = table[name].astype(float)
        found[name] = {"label": label, "unit": unit, "values": values.tolist()}
    return found


def limits(store: Store) -> list[dict[str, str]]:
    """What the results say of their own reach: errors of estimates, caveats, what was left out."""
    found = []
    if store.has("ledger"):
        data = store.get("ledger")
        gap, change = (float(data[name].mean()) for name in ("gap", "change"))
        nodes = int(data.nodes.max())
        said = f"the shares miss {number(gap)} of {number(change)} nats, at most {nodes} nodes"
        found.append(("ledger", said))
    for name in ("drift", "control_twin/drift", "readout"):
        if store.has(name) and (said := store.get(name).attrs.get("caveat")):
            found.append((name, said))
    if store.has("interference"):
        table: Any = fights(store).query("quantity == 'reliability' and at == 0")
        alike = percent(float(table.loc[table["matrix"] == "all", "value"].iloc[0]))
        said = f"the old task's own minibatches agree in sign in {alike} of their pairs"
        found.append(("interference", said))
    if store.has("landscape/curvature"):
        data = store.get("landscape/curvature")
        said = f"curvature is of {data.sizes['chosen']} prompts"
        found.append(("landscape", "; ".join(s for s in (said, data.attrs["note"]) if s)))
    if store.has("routing"):
        found.append(("routing", f"gates are read as {store.get('routing').attrs['rule']}"))
    if store.has("weights") and (said := store.get("weights").attrs.get("notes")):
        found.append(("weights", said))
    return [{"name": name, "detail": said} for name, said in found]
