"""The analyses run as a person would run them, on a small pair with damage in a known head."""

import subprocess
import sys

import pandas as pd
import pytest

from tests import oracle
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    save_tiny(folder / "pre")
    post = oracle.grafted(tiny_model(), tiny_model(seed=5), 1, 2, "all")
    post.save_pretrained(folder / "post")
    tiny_tokenizer().save_pretrained(folder / "post")
    rows = "".join(f"Say {n} again:,{n}\n" for n in ("one", "two", "six", "ten", "red", "big"))
    (folder / "task.csv").write_text("prompt,answer\n" + rows)
    return folder


def script(name, *arguments):
    command = [sys.executable, f"analyses/{name}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_patching_writes_tables_and_figures(pair, tmp_path):
    """Catches a script that drifted from the package, and a map that points at another head."""
    said = script("patching", pair / "pre", pair / "post", pair / "task.csv", tmp_path)
    assert said.startswith("forgotten: ")
    written = pd.read_csv(tmp_path / "written.csv")
    nonzero = written[written["effect"] != 0]
    # Only the grafted head and its group's other one (their k and v are shared) have new weights.
    assert {(1, 2), (1, 3)} == set(zip(nonzero["layer"], nonzero["head"], strict=True))
    for name in ("expressed", "written", "expressed_ranked", "written_ranked"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert "<svg" in (tmp_path / f"{name}.svg").read_text("utf-8")


def test_head_attribution_runs_as_a_script(pair):
    """Catches a notebook whose cells only work in an editor."""
    said = script(
        "head_attribution",
        *("--pre", pair / "pre", "--post", pair / "post", "--task", pair / "task.csv"),
    )
    assert "five largest" in said
    assert "restore" in said and "attention change" in said


INTERRUPTED = """
import runpy
from mechforget.checkpoints import smollm2
def fetch():
    raise KeyboardInterrupt
smollm2.fetch = fetch
runpy.run_path("analyses/demo.py", run_name="__main__")
"""


def test_an_interrupted_demo_says_so_in_a_line():
    """Catches a hundred lines of torch's after Ctrl-C in a demo that takes many minutes."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.splitlines() == [
        "demo: interrupted; what was finished is kept, the same command goes on"
    ]


def test_timings_names_every_job_that_ran(pair, tmp_path):
    """Catches a table that lost a measure, or seconds that aren't the run's."""
    out = tmp_path / "timings.md"
    task = str(pair / "task.csv")
    script(
        "timings",
        *("--pre", pair / "pre", "--post", pair / "post", "--task", task, "--new-task", task),
        *("--prompts", 4, "--out", out),
    )
    rows = [line.split(" | ") for line in out.read_text("utf-8").splitlines() if "| " in line]
    jobs = {row[0].removeprefix("| "): row[1] for row in rows[1:]}
    for name in ("patching/head_out", "grafting/all", "ledger", "interference", "drift", "readout",
                 "landscape/curvature", "weights", "similarity"):  # fmt: skip
        assert name in jobs, sorted(jobs)
    parts = sum(float(jobs[name]) for name in jobs if name != "all")
    assert abs(parts - float(jobs["all"])) <= 0.5 + 0.05 * len(jobs)
