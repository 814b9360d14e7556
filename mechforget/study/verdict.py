"""The verdict of a run in words: the same in terminal, report and file."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mechforget.statistics import caveat, enough_for
from mechforget.study.store import Store
from mechforget.study.tables.effects import floors, grafting, headline, patching, sets
from mechforget.study.tables.forgetting import forgetting, forgotten

if TYPE_CHECKING:
    import pandas as pd

NOT_SEEDS = (
    "intervals speak of prompts, not of other training seeds: one fine-tuned checkpoint was "
    "compared"
)


@dataclass(frozen=True, repr=False)
class Verdict:
    """Prints as its sentence."""

    sentence: str
    lines: tuple[str, ...]
    warnings: tuple[str, ...]
    forgetting: bool
    figures: tuple[dict[str, str], ...]

    def __repr__(self) -> str:
        return self.sentence


def verdict(store: Store) -> Verdict:
    """Reads the verdict off the tables; nothing is measured here."""
    table = forgetting(store)
    rows = table.set_index("metric")
    log_prob = rows.loc["log_prob"]
    n = int(log_prob["n"])
    said = _changes(table) + _course(store)
    lost = forgotten(table, "log_prob")
    interval_of = f"{within(-log_prob['change_high'], -log_prob['change_low'])}, n = {n}"
    figures = [
        {
            "value": number(-log_prob["change"]),
            "label": "nats forgotten (log p of the answer)",
            "interval": within(-log_prob["change_high"], -log_prob["change_low"]),
            "control": "two-sided sign flips, p = " + number(log_prob["p"]),
            "panel": "prompts",
        }
    ]
    warnings = [w for w in (caveat(n),) if w]
    checks = store.manifest.get("checks", ())
    warnings += [f"self-check failed: {c['name']}: {c['detail']}" for c in checks if not c["pass"]]
    warnings.append(NOT_SEEDS)
    if not lost:
        rose = log_prob["change"] > 0
        ends = (log_prob["change_low"], log_prob["change_high"])
        ends = ends if rose else (-ends[1], -ends[0])
        word = "significantly" if log_prob["significant"] else "insignificantly"
        sentence = (
            f"no forgetting to explain: log p of the old task's answers "
            f"{'rose' if rose else 'fell'} {word}, by "
            f"{number(abs(log_prob['change']))} nats ({within(*ends)}, n = {n}, sign flips "
            f"p = {number(log_prob['p'])})"
        )
        others = [m for m in ("logit_diff", "correct") if forgotten(table, m)]
        if others:
            sentence += f"; under {' and '.join(others)} alone the old task got worse"
        lines = (said, *_heads(store, False)[0])
        return Verdict(sentence + ".", lines, tuple(warnings), False, tuple(figures))
    heads, parts, more = _heads(store, True)
    against = [
        m
        for m in ("logit_diff", "correct")
        if not np.isnan(rows.loc[m, "change"]) and not forgotten(table, m)
    ]
    sentence = f"The old task lost {number(-log_prob['change'])} nats ({interval_of})"
    if against:
        sentence += f" under log_prob, not under {' or '.join(against)}"
    right = rows.loc["correct"]
    sentence += f": from {percent(right['pre'])} to {percent(right['post'])} correct"
    sentence += "".join(f"; {part}" for part in parts) + "."
    return Verdict(sentence, (said, *heads), tuple(warnings), True, (*figures, *more))


def _changes(table: "pd.DataFrame") -> str:
    parts = []
    for row in table.to_dict("records"):
        if row["metric"] == "preferred" or np.isnan(row["pre"]):
            continue
        change_of = f"{number(row['pre'])} -> {number(row['post'])}"
        ends = within(row["change_low"], row["change_high"])
        parts.append(f"{row['metric']} {change_of} ({ends})")
    return "before -> after (95 % interval of the change): " + ", ".join(parts)


def _course(store: Store) -> str:
    """For a sequence: log p at every checkpoint, from pre to post."""
    if store.checkpoints == 1:
        return ""
    steps = [store.at(t) for t in range(1, store.checkpoints + 1)]
    if not all(step.has("forgetting") for step in steps):  # post is measured before them
        return ""
    rows = [forgetting(step).set_index("metric").loc["log_prob"] for step in steps]
    each = [rows[0]["pre"], *(row["post"] for row in rows)]
    return f"; log_prob along the sequence: {' -> '.join(map(number, each))}"


def _heads(store: Store, lost: bool) -> tuple[list[str], list[str], list[dict[str, str]]]:
    """Lines, parts of the sentence, and figures on where the loss is expressed and written."""
    lines, parts, figures = [], [], []
    for role, name in (("expressed", "patching/head_out"), ("written", "grafting/all")):
        if not store.has(name):
            continue
        data = store.get(name).effect.sel(metric="log_prob")
        if "matrix" in data.dims:
            data = data.sel(matrix="all", drop=True)
        full = patching(store) if role == "expressed" else grafting(store)
        here = full[full["metric"] == "log_prob"]
        here = (
            here[here["site"] == "head_out"]
            if role == "expressed"
            else here[here["matrix"] == "all"]
        )
        significant = here[here["significant"]]
        counts = Counter(significant["direction"])
        n_heads = len(here) // 2
        clusters = len(np.unique(data.cluster.values))
        what = "head_out patching" if role == "expressed" else "grafting"
        line = (
            f"{role} ({what}): of {n_heads} heads, restoring one is significant for "
            f"{counts['restore']}, breaking one for {counts['break']} (FDR 5 %, above the floor)"
        )
        if not enough_for(n_heads, clusters):
            line += f"; too few prompts for single heads: {clusters} distinct for {n_heads} heads"
        lines.append(line)
        if not lost:
            continue
        restore = data.sel(direction="restore").transpose("layer", "head", "prompt")
        top, share, low, high = headline(store, restore)
        of_top = (full["layer"] == top[0]) & (full["head"] == top[1])
        doubt = _doubt(full.loc[of_top], role)
        parts.append(
            f"it is {role} most in L{top[0]}H{top[1]} "
            f"({'head_out' if role == 'expressed' else 'weights'} restored: {percent(share)} "
            f"of it, {percent(low)} to {percent(high)}, cross-fitted{doubt})"
        )
        floor = floors(
            store, "head_out" if role == "expressed" else "grafting", "log_prob", "restore"
        )
        figures.append(
            {
                "value": percent(share),
                "label": f"of it restored by the head where it is most {role}, L{top[0]}H{top[1]}",
                "interval": f"{percent(low)} to {percent(high)}, cross-fitted",
                "control": f"floor {number(floor[0])} nats ({floor[1]})",
                "panel": "heads",
            }
        )
    if lost and store.has("sets"):
        line, figure = _few(store)
        lines.append(line)
        figures.append(figure)
    return lines, parts, figures


def _doubt(rows: "pd.DataFrame", role: str) -> str:
    """What weakens a head's finding: that it is not significant, or only under log_prob or only for
    restore."""
    of, name = ("site", "head_out") if role == "expressed" else ("matrix", "all")
    seen = {
        (row["metric"], row["direction"])
        for row in rows.to_dict("records")
        if row[of] == name and row["significant"]
    }
    if ("log_prob", "restore") not in seen:
        return ", not significant"
    alone = []
    if ("log_prob", "break") not in seen:
        alone.append("restore")
    if not seen & {("logit_diff", "restore"), ("correct", "restore")}:
        alone.append("log_prob")
    return f", under {' and '.join(alone)} alone" if alone else ""


def _few(store: Store) -> tuple[str, dict[str, str]]:
    table = sets(store)
    here = table[table["metric"] == "log_prob"].set_index(["set", "k"])
    top = here.loc["top"]
    enough = top[top["share"] >= 0.5]
    k = int(enough.index[0]) if len(enough) else int(top["share"].idxmax())
    a, b = here.loc[("top", k)], here.loc[("random", k)]
    text = f"{percent(a['share'])} ({percent(a['share_low'])} to {percent(a['share_high'])})"
    control = f"{percent(b['share'])} ({percent(b['share_low'])} to {percent(b['share_high'])})"
    heads = "head restores" if k == 1 else "heads together restore"
    others = "head of the same layer" if k == 1 else "heads of the same layers"
    line = f"{k} {heads} {text}; {k} random {others} {control}"
    figure = {
        "value": percent(a["share"]),
        "label": f"restored by {k} head{'s together' if k > 1 else ''}",
        "interval": f"{percent(a['share_low'])} to {percent(a['share_high'])}, cross-fitted",
        "control": f"{k} random {others} {control}",
        "panel": "sure",
    }
    return line, figure


def number(x: float) -> str:
    """Three significant digits, with a true minus sign."""
    return "–" if np.isnan(x) else f"{x:.3g}".replace("-", "−")


def percent(x: float) -> str:
    return "–" if np.isnan(x) else f"{100 * x:.0f} %".replace("-", "−")


def within(low: float, high: float) -> str:
    return "no interval" if np.isnan(low) else f"{number(low)} to {number(high)}"
