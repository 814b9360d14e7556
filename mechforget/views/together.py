"""The bundle's part about all measures together: the paper's claims, and whether the measures agree
on heads."""

from typing import Any

from mechforget.study.store import Store
from mechforget.study.tables.agreement import MEANING, correlations
from mechforget.study.tables.claims import claims


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
