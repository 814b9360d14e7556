"""The whole command on tiny random models: every row runs, and both sides get the same numbers."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import CASES
from benchmarks.questions.estimates import ONE_PASS

# By how much both sides may differ. A log-probability of 6 nats is rounded to 5e-7, and an effect is
# the difference of two that went through three layers in another order of summation. Relative:
# curvature's products are sums of a few thousand squares in float32. Ranks are first order.
EFFECTS, RELATIVE, RANK = 1e-5, 1e-4, 0.9


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    line = [sys.executable, "-m", "benchmarks", "--quick", "--profile", "--work", str(folder)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as the tests have, which go on with it
    done = subprocess.run(line, capture_output=True, text=True, env=one_thread)
    assert done.returncode == 0, done.stderr
    return folder


def rows(work):
    return {
        case.key: json.loads((work / "rows" / f"{case.key}.json").read_text()) for case in CASES
    }


@pytest.mark.parametrize("key", [case.key for case in CASES])
def test_both_sides_agree(work, key):
    """Catches a peer that measures something else: another direction, head, position, metric or
    prompt. A ratio of two different things says nothing. The numbers that are compared must not be
    so small that anything agrees."""
    row = rows(work)[key]
    for name, peer in row["peers"].items():
        one = peer["agreement"]
        assert peer["ran"] == peer["of"], name
        if one["kind"] == "rank correlation":
            assert one["value"] >= RANK, name
            assert "kept heads differ by" in one["note"], name
            assert float(one["note"].split("differ by ")[1].split()[0]) <= EFFECTS
        elif one["kind"] != ONE_PASS:
            relative = one["unit"] != "nats"
            allowed = RELATIVE * max(1.0, one["scale"]) if relative else EFFECTS
            assert one["value"] <= allowed < one["scale"] / 100, (name, one)


def test_models_are_open_before_anything_is_timed(work):
    """Catches a first round that loads a model, and is ten times as long as the others."""
    for case in CASES:
        scene = case.scene(work, "cpu", quick=True)
        case.ask(scene)
        assert ("inputs" in vars(scene)) == (case.table != "weights"), case.key


def test_every_row_counts_its_tokens(work):
    """Catches tokens of another row, and beginnings that are not shared where they could be."""
    for case, row in zip(CASES, rows(work).values(), strict=True):
        tokens = row["tokens"]
        assert tokens["distinct"] <= tokens["real"] <= tokens["padded"]
        shared = tokens["distinct"] < 0.6 * tokens["real"]
        assert shared == (case.words is None), case.key


def test_the_page_names_every_row(work):
    """Catches a table that lost a row, a peer or its agreement."""
    text = (work / "benchmarks.md").read_text("utf-8")
    for case, row in zip(CASES, rows(work).values(), strict=True):
        assert f"## {case.table[0].upper()}{case.table[1:]}\n" in text
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        for peer in row["peers"]:
            assert any(peer in line for line in lines)
    assert "## Where the time of a head sweep goes" in text and "matrix products" in text
    assert "aim" not in text.lower().split("## head sweep")[1]  # of tiny models nothing is aimed at


def test_an_interrupted_run_goes_on(work):
    """Catches rows that are measured again, and one that is missing and stays so."""
    files = {case.key: work / "rows" / f"{case.key}.json" for case in CASES}
    before = {key: file.stat().st_mtime_ns for key, file in files.items()}
    lost = CASES[-1].key
    files[lost].unlink()
    main(quick=True, work=work)
    assert {key for key, file in files.items() if file.stat().st_mtime_ns != before[key]} == {lost}


def test_rows_of_another_machine_are_refused(work):
    """Catches a page whose rows were measured in different ways."""
    file = work / "machine.json"
    kept = file.read_text("utf-8")
    about = json.loads(kept)
    about["facts"]["threads"] += 1
    file.write_text(json.dumps(about), "utf-8")
    with pytest.raises(SystemExit, match="were measured with another threads: remove the folder"):
        main(quick=True, work=work)
    file.write_text(kept, "utf-8")
