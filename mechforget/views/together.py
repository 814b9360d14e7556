"""The bundle's part for what only all measures together say: claims, and do they agree on heads?"""

from typing import Any

import numpy as np

from mechforget.study.agreement import MEANING, agreement, correlations
from mechforget.study.claims import claims
from mechforget.study.store import Store

# On a head's card, where the meaning is too long. What another part of the bundle shows of a head
# isn't said there again.
CARD = {
    "ledger": ("ledger: rise written in its weights", "nats"),
    "interference": ("interference (cosine at pre)", ""),
    "attribution": ("attribution, restore (estimate)", "nats"),
}


def board(store: Store) -> list[dict[str, Any]] | None:
    """One row per claim of the paper."""
    table = claims(store)
    return table.to_dict("records") if len(table) else None


def agree(store: Store) -> dict[str, Any] | None:
    """Rank correlations over heads, each pair of measures once."""
    rows = correlations(store)
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
    table = agreement(store)
    layers, heads = (store.manifest["model"][k] for k in ("layers", "heads"))
    found = {}
    for name, (label, unit) in CARD.items():
        if name not in table or not table[name].notna().any():
            continue
        values = np.full(layers * heads, np.nan)
        values[(table["layer"] * heads + table["head"]).astype(int)] = table[name].astype(float)
        found[name] = {"label": label, "unit": unit, "values": values.tolist()}
    return found
