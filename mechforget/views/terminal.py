"""A run in the terminal: the verdict in a few lines, the strongest heads in a table."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.study.store import Store
from mechforget.study.tables.claims import claims
from mechforget.study.tables.effects import patching, site_names
from mechforget.study.verdict import number, percent, verdict, within

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from rich.table import Table


def verdict_lines(store: Store, report: Path | None = None) -> list[str]:
    """The verdict; its sentence is the last line."""
    said = verdict(store)
    lines = [*said.lines, *(f"note: {w}" for w in said.warnings)]
    lines += [f"note: {note}" for note in store.manifest["notes"]]
    if report is not None:
        lines.append(f"report: {report}")
    return [*lines, said.sentence]


def scores_lines(scores: "xr.Dataset", found: "xr.Dataset", correct: "xr.Dataset") -> list[str]:
    """The score matrix of a sequence of trainings, and what the sequence cost.

    found, correct: of `measures.continual`, for log_prob and for correct.
    """
    lines = ["mean log p of the right answer, nats, at each checkpoint:"]
    lines += scores["log_prob"].to_pandas().round(3).to_string().split("\n")
    for i, task in enumerate(scores.task.values):
        lost, worst = (_estimate(found[k].values[i]) for k in ("lost", "forgetting"))
        lines.append(f"{task}: lost {lost} nats since it was first there; from its best {worst}")
    for name in ("backward", "forward"):
        if not np.isnan(found[name].values[0]):
            lines.append(f"{name} transfer: {_estimate(found[name].values)} nats")
    return [*lines, f"average accuracy at the end: {_estimate(correct.average.values)}"]


def _estimate(bounds: "Sequence[float] | np.ndarray") -> str:
    value, low, high = bounds
    return f"{number(value)} ({within(low, high)})"


def _claims(store: Store) -> "Table":
    """The paper's claims against this run."""
    from rich.table import Table

    drawn = Table(
        "claim", "this run", "n", "paper", "verdict", title="the paper's claims (2601.18699)"
    )
    for row in claims(store).to_dict("records"):  # of a sequence: of its last checkpoint
        unit = "" if row["unit"] == "1" else f" {row['unit']}"
        value = _estimate((row["value"], row["low"], row["high"])) + unit
        shown = "–" if np.isnan(row["value"]) else value
        drawn.add_row(
            f"{row['claim']} {row['text']}",
            shown,
            str(row["n"] or "–"),
            row["paper"],
            row["verdict"],
        )
    return drawn


def show(store: Store, n: int) -> None:
    """Prints the strongest heads by head_out (else by what was patched), the paper's claims, then
    the verdict."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table: Any = patching(store) if site_names(store) else None
    if table is not None:
        table = table[(table["metric"] == "log_prob") & table["head"].notna()]
    if table is not None and len(table):
        site = "head_out" if "head_out" in set(table["site"]) else table["site"].iloc[0]
        here = table[table["site"] == site].set_index(["direction", "layer", "head"])
        restore, broken = here.loc["restore"], here.loc["break"]
        order = restore["effect"].abs().sort_values(ascending=False).index[:n]
        title = f"strongest heads by {site}, log_prob, nats (95 % interval)"
        drawn = Table("head", "restore", "share", "q", "break", "q", title=title)
        for at in order:
            a, b = restore.loc[at], broken.loc[at]
            drawn.add_row(
                f"L{at[0]}H{at[1]}",
                f"{number(a['effect'])} ({number(a['effect_low'])} to {number(a['effect_high'])})",
                percent(a["share"]),
                number(a["q"]) + ("*" if a["significant"] else ""),
                f"{number(b['effect'])} ({number(b['effect_low'])} to {number(b['effect_high'])})",
                number(b["q"]) + ("*" if b["significant"] else ""),
            )
        console.print(drawn)
    console.print(_claims(store))
    sys.stdout.write("\n".join(verdict_lines(store)) + "\n")
