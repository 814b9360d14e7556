"""What is known of each head besides its effects: the columns of the report's head card."""

from typing import Any

import numpy as np

from mechforget.study.store import Store
from mechforget.study.tables.agreement import agreement

# Shorter labels than in `agreement`, of the columns that no other part of the report shows.
CARD = {
    "ledger": ("ledger: rise written in its weights", "nats"),
    "interference": ("interference (cosine at pre)", ""),
}


def columns(store: Store) -> dict[str, Any]:
    """name -> label, unit and a value for every head, layer by layer."""
    found = {}

    def add(name: str, label: str, unit: str, values: Any) -> None:
        found[name] = {"label": label, "unit": unit, "values": np.ravel(values).tolist()}

    if store.has("attention_change"):
        data = store.get("attention_change").mean("prompt")
        add("js", "attention change (Jensen-Shannon)", "bit", data.js.values)
        for at, when in (("pre", "before"), ("post", "after")):
            add(
                f"entropy_{at}", f"attention entropy, {when}", "bit", data.entropy.sel(at=at).values
            )
            add(
                f"first_{at}",
                f"weight on the first token, {when}",
                "share",
                data["first"].sel(at=at).values,
            )
    if store.has("attention_roles"):
        data = store.get("attention_roles").mean("sequence")
        for at, when in (("pre", "before"), ("post", "after")):
            add(
                f"induction_{at}",
                f"induction score, {when}",
                "share",
                data.induction.sel(at=at).values,
            )
            add(
                f"previous_{at}",
                f"previous-token score, {when}",
                "share",
                data.previous.sel(at=at).values,
            )
    if store.has("logit_attribution"):
        data = store.get("logit_attribution").heads.mean("prompt").transpose("at", "layer", "head")
        for at, when in (("pre", "before"), ("post", "after")):
            add(f"dla_{at}", f"direct logit attribution, {when}", "nats", data.sel(at=at).values)
        both = data.sel(at="post", drop=True) - data.sel(at="pre", drop=True)
        add("dla_change", "direct logit attribution, change", "nats", both.values)
    if store.has("weights") and "relative" in store.get("weights"):
        moved, model = store.get("weights").relative, store.manifest["model"]
        if "checkpoint" in moved.dims:
            moved = moved.isel(checkpoint=-1)
        for matrix in moved.matrix.values:
            units = model["kv_heads"] if matrix in ("W_K", "W_V") else model["heads"]
            own = np.arange(model["heads"]) * units // model["heads"]  # of a group: its heads'
            of = moved.sel(matrix=matrix).transpose("layer", "head").values[:, own]
            add(f"moved_{matrix}", f"‖Δ{matrix}‖ / ‖{matrix}‖", "", of)
    return found | _from_agreement(store)


def _from_agreement(store: Store) -> dict[str, dict[str, Any]]:
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
