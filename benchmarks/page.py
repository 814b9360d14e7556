"""The page: a table for each question, what it means, and where an aim is missed."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.cases import CASES, CURVES
from benchmarks.meaning import AIMS, MEANING, Aim
from benchmarks.models import GPT2, SMOL
from benchmarks.questions.estimates import ONE_PASS, PASS
from benchmarks.questions.sweeps import LENS
from benchmarks.scene import DTYPE

Row = dict[str, Any]
COLUMNS = ("what", "tokens", "beside", "seconds", "ratio", "range", "agreement")


def text(rows: Sequence[Row], about: dict[str, Any], profile: dict[str, Any] | None) -> str:
    parts = ["# Benchmarks", *preface(rows, about)]
    for table in dict.fromkeys(case.table for case in CASES):
        mine = [row for row in rows if table in (row["case"]["table"], row["case"]["also"])]
        if not mine:
            continue
        shown = curve(mine, about) if table in CURVES else lines(mine, about)
        parts += [f"## {table[0].upper()}{table[1:]}", MEANING[table], shown]
        aims = [] if about["facts"]["quick"] else [aim for aim in AIMS if aim.table == table]
        parts += [sentence for aim in aims for sentence in aimed(aim, mine, about)]
    if profile is not None:
        parts += ["## Where the time of a head sweep goes", *profiled(profile)]
    return "\n\n".join(parts) + "\n"


def preface(rows: Sequence[Row], about: dict[str, Any]) -> list[str]:
    facts = about["facts"]
    pairs = {row["case"]["model"]: " and ".join(row["pair"]) for row in reversed(rows)}
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    quick = "Tiny random models, one round: only the agreement means anything. "
    return [
        f"Made by `python -m benchmarks`: don't edit. {quick if facts['quick'] else ''}"
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"{facts['device']}, {DTYPE}; {versions}; mechforget's files "
        f"{facts['mechforget']}. One large matrix product reaches {about['peak'] / 1e9:.0f} "
        f"GFLOP/s, and a large tensor is read at {about['read'] / 1e9:.1f} GB/s. When the command "
        f"began, other work kept {about['load']:.1f} cores busy.",
        f"{SMOL} is the pair {pairs.get(SMOL, 'of the demo')}, and {GPT2} has random weights: 12 "
        "layers of 12 heads, 768 wide. The prompts are of `builtin:language`, drawn with seed 0."
        + (
            f" Not measured yet: {len(CASES) - len(rows)} of {len(CASES)} rows."
            * (len(rows) < len(CASES))
        ),
        "Each line compares the same model, prompts, number type and threads. Both sides run in "
        "turn in several rounds; the ratio is their time over mechforget's in the same round "
        "(median, and the range over rounds). A loop of many minutes runs some of its layers, "
        "evenly spread, and its time is multiplied up; the last column says so. *Agreement* is "
        "the largest difference from mechforget's numbers, and after it the largest of these "
        "numbers. *Tokens* are those of the padded rows, then the distinct ones: beginnings that "
        "several prompts share count once.",
        "The *bound* is the least arithmetic: the matrix products alone, each distinct token once "
        "in each variant and only from the patched layer on, at the rate that the model's own "
        "weight matrices reach in the same round; or reading all weights once, if that takes "
        "longer.",
    ]


def ratios(row: Row, peer: str) -> list[float]:
    return [one["peers"][peer] / one["ours"] for one in row["rounds"]]


def of_bound(row: Row, about: dict[str, Any]) -> list[float]:
    """mechforget's time over the bound, by round; empty where nothing was counted."""
    if row["flops"] is None and row["bytes"] is None:
        return []
    read = (row["bytes"] or 0.0) / about["read"]
    flops = row["flops"] or 0.0
    return [one["ours"] / max(flops / one["rate"], read) for one in row["rounds"]]


def what(row: Row) -> str:
    case = row["case"]
    said = [case["model"], f"{row['prompts']} prompts"]
    if case["words"]:
        said.append(f"{case['words']} random words")
    elif case["shots"]:
        said.append(f"{case['shots']} shots")
    return ", ".join([*said, *([case["site"]] if case["site"] else [])])


def lines(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """The table: for each row mechforget, the bound and the peers."""
    found = [COLUMNS, ["---"] * len(COLUMNS)]
    for row in rows:
        tokens = f"{row['tokens']['padded']}, {row['tokens']['distinct']}"
        ours = [one["ours"] for one in row["rounds"]]
        found.append([what(row), tokens, "mechforget", number(median(ours)), "1", "", ""])
        if over := of_bound(row, about):
            bounds = [mine / share for mine, share in zip(ours, over, strict=True)]
            less = [1 / share for share in over]
            note = f"mechforget takes {median(over):.2f} times the bound"
            if row["flops"]:
                note += f", {row['flops'] / median(ours) / about['peak']:.0%} of the peak"
            found.append(["", "", "the bound", number(median(bounds)), *interval(less), note])
        for peer, its in row["peers"].items():
            spent = number(median(one["peers"][peer] for one in row["rounds"]))
            ratio = interval(ratios(row, peer))
            found.append(["", "", peer, spent, *ratio, agreement(its)])
    return "\n".join("| " + " | ".join(line) + " |" for line in found)


def curve(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """A line for each row, beside TransformerLens."""
    head = ("layers", "prompts", "longest", "padded", "distinct")
    more = ("mechforget, s", "times the bound", LENS, "range", "agreement")
    found = [[*head, *more], ["---"] * (len(head) + len(more))]

    def order(row: Row) -> tuple[int, ...]:
        return row["layers"], row["prompts"], row["tokens"]["padded"]

    for row in sorted(rows, key=order):
        tokens = [row["tokens"][name] for name in head[2:]]
        ours = number(median(one["ours"] for one in row["rounds"]))
        over = number(median(of_bound(row, about)))
        ratio = interval(ratios(row, LENS))
        line = [row["layers"], row["prompts"], *tokens, ours, over, *ratio]
        found.append([*map(str, line), agreement(row["peers"][LENS])])
    return "\n".join("| " + " | ".join(line) + " |" for line in found)


def interval(values: Sequence[float]) -> tuple[str, str]:
    return number(median(values)), f"{number(min(values))} to {number(max(values))}"


def number(value: float) -> str:
    """Three digits, and no exponent.

    >>> [number(x) for x in (0.01234, 4.567, 123.4)]
    ['0.0123', '4.57', '123']
    """
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def agreement(its: dict[str, Any]) -> str:
    one = its["agreement"]
    if one["kind"] == ONE_PASS:
        return ""
    if one["kind"] == "rank correlation":
        said = f"rank correlation {one['value']:.2f}"
    else:
        said = f"{one['value']:.0e} of {one['scale']:.2g} {one['unit']}".strip()
        said = f"{one['value']:.0e}, relative" if "relative" in one["kind"] else said
    notes = [one["note"]] if one["note"] else []
    if its["ran"] < its["of"]:
        notes.append(f"{its['ran']} of {its['of']} {its['parts']} run")
    return "; ".join([said, *notes])


def aimed(aim: Aim, rows: Sequence[Row], about: dict[str, Any]) -> list[str]:
    """A sentence for each row that this aim is for."""
    found = []
    for row in rows:
        if (row["case"]["model"], row["case"]["shots"]) != (aim.model, aim.shots):
            continue
        if aim.peer == "bound":
            value, least = median(of_bound(row, about)), False
            aimed_at = f"at most {aim.wanted:g} times the bound"
        elif aim.peer == "passes":
            value, least = 1 / median(ratios(row, PASS)), False
            aimed_at = f"at most {aim.wanted:g} forward passes"
        else:
            value, least = median(ratios(row, aim.peer)), True
            aimed_at = f"at least {aim.wanted:g} times as fast as {aim.peer}"
        met = value >= aim.wanted if least else value <= aim.wanted
        found.append(
            f"Aim of {what(row)}: {aimed_at}. It is {number(value)}: "
            + ("**met**." if met else "**missed**.")
        )
    return found


def profiled(profile: dict[str, Any]) -> list[str]:
    def table(name: str, shares: dict[str, float]) -> str:
        head = [f"| {name} | share of the time |", "|---|---|"]
        return "\n".join([*head, *(f"| {key} | {share:.1%} |" for key, share in shares.items())])

    return [
        "By torch's profiler, of the operators' own time, in the first row's sweep.",
        table("kind", profile["kinds"]),
        table("operator", profile["slowest"]),
    ]


def said(row: Row, about: dict[str, Any]) -> list[str]:
    """What the terminal says of a row as soon as it is there."""
    ours = median(one["ours"] for one in row["rounds"])
    found = [f"{row['case']['table']}: {what(row)}: {number(ours)} s, {len(row['rounds'])} rounds"]
    if over := of_bound(row, about):
        found.append(f"  {median(over):.2f} times the bound")
    for peer, its in row["peers"].items():
        middle, ends = interval(ratios(row, peer))
        found.append(f"  {peer}: {middle} x ({ends}); {agreement(its)}".rstrip("; "))
    return found
