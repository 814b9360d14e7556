"""Measures every row and writes docs/benchmarks.md.

    python -m benchmarks                    # about 25 minutes on 2 idle cores
    python -m benchmarks --quick            # tiny random models: does everything run and agree?
    python -m benchmarks --device cuda --out benchmarks-cuda.md

Each row is kept in a file: an interrupted run goes on, and a row whose file is deleted is measured
again. Ratios are of one moment, but seconds need an idle machine.
"""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tyro

from benchmarks import machine, operators, page, rounds
from benchmarks.cases import CASES, Case
from benchmarks.scene import Scene
from mechforget import progress


def main(
    *,
    quick: bool = False,
    device: str = "cpu",
    profile: bool = False,
    out: Path | None = None,
    work: Path | None = None,
) -> None:
    """
    Args:
        quick: tiny random models and one round, in seconds.
        device: cpu or cuda.
        profile: also where the time of a head sweep goes, by operator.
        out: the page; docs/benchmarks.md, with quick a file in `work`.
        work: the folder in which rows and random models are kept.
    """
    work = work or Path("runs/benchmarks-quick" if quick else "runs/benchmarks")
    out = out or (work / "benchmarks.md" if quick else Path("docs/benchmarks.md"))
    about = _begun(work, device, quick=quick)
    files = {case: work / "rows" / f"{case.key}.json" for case in CASES}
    left = [case for case, file in files.items() if not file.exists()]
    spent = reckoned = 0.0
    with progress.bar("benchmarks", len(left), unit="rows") as advance:
        for done, case in enumerate(left, 1):
            row = measured(case, work, device, quick=quick)
            _write(files[case], row)
            advance(1)
            spent, reckoned = spent + row["seconds"], reckoned + case.seconds
            rest = sum(other.seconds for other in left[done:]) * spent / reckoned
            said = [*page.said(row, about), f"  about {rest / 60:.0f} min left"]
            print("\n".join(said), flush=True)
            _show(files.values(), about, work, out)
    if profile and not (work / "profile.json").exists():
        scene = CASES[0].scene(work, device, quick=quick)
        _write(work / "profile.json", operators.by_kind(scene))
    _show(files.values(), about, work, out)
    print(out)


def _show(files: Iterable[Path], about: dict[str, Any], work: Path, out: Path) -> None:
    """Writes the page with the rows that there are."""
    rows = [_read(file) for file in files if file.exists()]
    out.write_text(page.text(rows, about, _read(work / "profile.json")), "utf-8")


def measured(case: Case, work: Path, device: str, *, quick: bool) -> dict[str, Any]:
    """One row: what was asked, the rounds, what each peer agreed on, tokens and the bound."""
    start = time.monotonic()
    scene = case.scene(work, device, quick=quick)
    question = case.ask(scene)
    tokens = 64 if quick else machine.TOKENS

    def rate() -> float:
        return machine.product_rate(scene.shape, device, tokens)

    found = rounds.run(question.ours, question.peers, rate, device, quick=quick)
    names = ("table", "also", "model", "shots", "words", "site")
    return {
        "case": {name: getattr(case, name) for name in names},
        "pair": [folder.name for folder in scene.folders],
        "prompts": scene.sequences.prompts,
        "layers": scene.shape.layers,
        "tokens": _tokens(scene),
        "flops": question.flops,
        "bytes": question.bytes,
        "seconds": time.monotonic() - start,
        **found,
    }


def _tokens(scene: Scene) -> dict[str, Any]:
    rows = scene.sequences
    return {
        "padded": int(rows.ids.size),
        "real": int(rows.length.sum()),
        "distinct": len(scene.tree.depth),
        "longest": int(rows.length.max()),
    }


def _begun(work: Path, device: str, *, quick: bool) -> dict[str, Any]:
    """What belongs to the whole page, measured when the folder is begun."""
    facts, file = machine.facts(device, quick=quick), work / "machine.json"
    if (about := _read(file)) is None:
        about = {
            "facts": facts,
            "load": machine.load(),
            "peak": machine.peak_rate(device, quick=quick),
            "read": machine.read_rate(device, quick=quick),
        }
        _write(file, about)
    if about["facts"] != facts:
        changed = [name for name in facts if about["facts"].get(name) != facts[name]]
        raise SystemExit(
            f"benchmarks: the rows in {work} were measured with another {', '.join(changed)}: "
            "remove the folder, or name another with --work"
        )
    return about


def _read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def _write(file: Path, what: Any) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(what, indent=1) + "\n", "utf-8")
    partial.replace(file)


if __name__ == "__main__":
    from transformers.utils import logging

    logging.disable_progress_bar()  # of this process alone, not of a test that calls main
    try:
        tyro.cli(main, prog="python -m benchmarks", description=__doc__)
    except KeyboardInterrupt:
        sys.exit("benchmarks: interrupted; finished rows are kept, the same command goes on")
