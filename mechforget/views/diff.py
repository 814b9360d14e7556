"""Two checkpoints' weights in the terminal: the tensors and heads that moved the most."""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 110  # where there is no terminal to ask


def show(table: "pd.DataFrame", said: str, n: int) -> None:
    """Prints the n largest relative changes of `measures.weights.table`, and the whole change."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    spectra = "stable_rank" in table and bool(table["stable_rank"].notna().any())
    for title, kinds in (
        ("Tensors", ("tensor",)),
        ("Heads (of W_K and W_V groups of heads)", ("head", "group")),
        ("Experts", ("expert",)),
    ):
        some: Any = table[table["kind"].isin(kinds) & (table["norm"] > 0)]
        unchanged = int(np.isin(table["kind"], kinds).sum()) - len(some)
        if not len(some):
            continue
        some = some.sort_values("relative", ascending=False, kind="stable")
        count = f"{len(some):,} moved, {unchanged:,} did not"
        most = f"; the {n} that moved the most" if len(some) > n else ""
        ranks = spectra and kinds != ("head", "group")
        console.print(f"{title}: {count}{most}")
        console.print(_drawn(some.head(n), ranks))
    whole: Any = table.iloc[-1]
    if said:
        console.print(f"note: {said}", soft_wrap=True)
    console.print(
        f"all weights: ‖ΔW‖ / ‖W‖ = {whole['relative']:.3g}, ‖ΔW‖ = {whole['norm']:.4g}, largest "
        f"{whole['largest']:.3g}, {100 * whole['changed']:.3g} % of the values changed",
        soft_wrap=True,
    )


def _drawn(some: "pd.DataFrame", ranks: bool) -> Any:
    from rich import box
    from rich.table import Table

    columns = ["", "‖ΔW‖/‖W‖", "‖ΔW‖", "largest", "changed"]
    columns += ["stable rank", "eff. rank", "overlap (chance)"] if ranks else []
    table = Table(box=box.SIMPLE, padding=(0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    for row in some.to_dict("records"):
        cells = [_name(row), f"{row['relative']:.3g}", f"{row['norm']:.3g}"]
        cells += [f"{row['largest']:.3g}", f"{100 * row['changed']:.3g} %"]
        if ranks:
            cells += [_short(row["stable_rank"]), _short(row["effective_rank"])]
            over, chance = _short(row["overlap_right"]), _short(row["chance_right"])
            cells.append(f"{over} ({chance})" if over != "–" else "–")
        table.add_row(*cells)
    return table


def _name(row: dict[str, Any]) -> str:
    if row["kind"] in ("head", "group"):
        return f"L{row['layer']} {row['matrix']} {row['kind']} {row['unit']}"
    if row["kind"] == "expert":
        return f"L{row['layer']} expert {row['unit']} {row['matrix']}"
    return row["tensor"] + (f" ({row['matrix']})" if row["matrix"] else "")


def _short(x: float) -> str:
    return f"{x:.3g}" if x == x else "–"
