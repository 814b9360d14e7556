"""A whole study from Python: the command's numbers, its files, and errors that say the way out."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mechforget as mf
from mechforget import models
from mechforget import runs as api
from mechforget.errors import MechforgetError, ModelError, StudyError
from mechforget.measures import running
from mechforget.study.settings import Study
from mechforget.study.store import Store
from tests import runs

FEW = dict(measures="forgetting, patching", sites=["head_out"], prompts=8)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """What a test says is forgotten after it."""
    monkeypatch.setattr(running, "_said", {})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that `compare` made from Python, and what it said."""
    said = []
    out = tmp_path_factory.mktemp("api") / "run"
    return mf.compare(runs.pre(), runs.post(), runs.task(), out=out, say=said.append, **FEW), said


def test_the_public_names_are_there_in_order_and_completed():
    """Catches a name that is listed and missing, or missing from completion in a notebook."""
    assert mf.__all__ == sorted(mf.__all__, key=lambda name: (name[0].islower(), name))
    assert set(mf.__all__) <= set(dir(mf))
    for name in mf.__all__:
        assert getattr(mf, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'patching': it has Pair, Run, Sequence"):
        _ = mf.patching


def test_import_is_light():
    """Catches a notebook's first cell that takes seconds."""
    heavy = "print(sorted({'torch', 'transformers', 'pandas', 'xarray', 'pydantic'} & set(sys.modules)))"
    for code, expected in (
        ("import sys, mechforget as mf;", "[]"),
        ("import sys, pandas;", "['pandas']"),
    ):
        done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


def test_compare_gives_the_commands_numbers(made, tmp_path):
    """Catches an option that doesn't arrive, and a table that isn't the exported one."""
    run, said = made
    words = ("compare", runs.pre(), runs.post(), "--task", runs.task(), "--out", tmp_path / "run")
    words += ("--measures", "forgetting,patching", "--sites", "head_out", "--prompts", 8)
    command = runs.mechforget(*words)
    assert command.code == 0
    theirs, ours = Store(tmp_path / "run"), Store(run.path)
    assert theirs.manifest["settings"] == ours.manifest["settings"]
    for name in ("forgetting", "patching"):
        exported = tmp_path / f"{name}.csv"
        runs.mechforget("export", tmp_path / "run", name, "--out", exported)
        mine = tmp_path / "mine.csv"
        runs.mechforget("export", run.path, name, "--out", mine)
        assert mine.read_bytes() == exported.read_bytes()
        read = pd.read_csv(exported, float_precision="round_trip")
        np.testing.assert_array_equal(run.table(name)[read.columns[-3]], read[read.columns[-3]])
        assert list(run.table(name).columns) == list(read.columns)
    assert str(run.verdict) == command.out.splitlines()[-1]
    assert any(line.startswith("estimated: ") for line in said)
    assert not (run.path / "report.html").exists()  # not asked for


def test_a_run_lists_what_it_has_and_says_what_it_has_not(made):
    """Catches a KeyError, and names that have to be guessed."""
    run, _ = made
    assert run.results == ("forgetting", "patching/head_out")
    assert run.tables == ("forgetting", "patching", "agreement", "claims")
    for name in run.tables:
        assert len(run.table(name))
    assert run.result("patching/head_out").effect.sizes["prompt"] == 8
    for ask, words in (
        (lambda: run.table("graft"), "'graft' is unknown; want one of forgetting, patching"),
        (lambda: run.table("grafting"), "has no grafting: .* it has: forgetting, patching"),
        (lambda: run.result("patching"), "has no patching; it has: forgetting, patching/head_out"),
    ):
        with pytest.raises(StudyError, match=words):
            ask()
    shown = repr(run)
    assert f"{runs.pre()} -> {runs.post()}, task {runs.task()}, 8 prompts" in shown
    assert (
        ".tables: forgetting, patching, agreement, claims" in shown and "not finished" not in shown
    )


def test_every_table_that_the_default_run_lists_can_be_made():
    """Catches a table that is promised and can't be made."""
    run = mf.open_run(runs.compared()[0])
    assert {"forgetting", "patching", "grafting", "ledger", "origins"} <= set(run.tables)
    for name in run.tables:
        assert len(run.table(name)), name


def test_the_report_is_written_where_it_is_asked_for(made, tmp_path):
    """Catches a report in another place than is said, and a traceback without a folder."""
    run, _ = made
    assert run.report() == run.path / "report.html" and run.report().is_file()
    elsewhere = run.report(str(tmp_path / "mine.html"))
    assert elsewhere.read_bytes() == run.report().read_bytes()
    for wrong in (tmp_path, tmp_path / "no" / "report.html"):
        with pytest.raises(StudyError, match="want a file in a folder that exists"):
            run.report(wrong)


def test_a_finished_run_is_read_and_says_so(made, monkeypatch):
    """Catches a notebook whose cell measures everything again, or hides that it doesn't."""
    run, _ = made
    monkeypatch.setattr(models, "open", None)
    said = []
    again = mf.compare(runs.pre(), runs.post(), runs.task(), out=run.path, say=said.append, **FEW)
    assert len(said) == 1 and "is only read: to measure again, give another out" in said[0]
    pd.testing.assert_frame_equal(again.table("patching"), run.table("patching"))
    with pytest.raises(
        StudyError, match=r"holds a run with other settings .prompts 8 there, 9 now"
    ):
        mf.compare(runs.pre(), runs.post(), runs.task(), out=run.path, **FEW | {"prompts": 9})


def test_an_old_run_is_opened_and_a_folder_that_is_none_refused(made, tmp_path):
    """Catches a run that only the process that made it can read."""
    old = mf.open_run(str(made[0].path))
    assert old.tables == made[0].tables and repr(old) == repr(made[0])
    with pytest.raises(StudyError, match=r"is not a run .it has no manifest.json"):
        mf.open_run(tmp_path)


def test_an_unfinished_run_is_shown_as_one(made, tmp_path):
    """Catches a table of half a run that looks whole."""
    import json
    import shutil

    shutil.copytree(made[0].path, tmp_path / "run")
    file = tmp_path / "run" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest |= {"complete": False, "finished": []}
    file.write_text(json.dumps(manifest))
    run = mf.open_run(tmp_path / "run")
    assert "not finished: compare goes on with it" in repr(run) and ".tables: none yet" in repr(run)
    with pytest.raises(StudyError, match="has no forgetting; it has: nothing yet"):
        _ = run.verdict


def test_how_models_run_reaches_a_run(monkeypatch, tmp_path):
    """Catches `use` that compare ignores, and options that it doesn't put above it."""
    seen = []
    monkeypatch.setattr(api, "run", lambda settings, out, say: seen.append((settings, out)))
    mf.use(backend="nnsight", dtype="bfloat16", memory=3)
    mf.compare("a", "b", "builtin:capital")
    mf.compare("a", "b", "builtin:capital", dtype="float32", out=tmp_path)
    (first, out), (second, other) = seen
    assert (first.backend, first.dtype, first.memory) == ("nnsight", "bfloat16", 3)
    assert (second.backend, second.dtype, second.memory) == ("nnsight", "float32", 3)
    assert (out, other) == (Path("run"), tmp_path)


def test_checkpoints_and_tasks_may_be_objects(monkeypatch):
    """Catches a study that can't be repeated because it names an object."""
    seen = []
    monkeypatch.setattr(api, "run", lambda settings, out, say: seen.append(settings))
    pair = mf.Pair(runs.pre(), runs.post())
    task = mf.tasks.load("builtin:capital")
    mf.compare(
        pair.pre, runs.post(), task, new_task=runs.new_task(), between=[pair.pre], measures="all"
    )
    (study,) = seen
    assert (study.pre, study.post, study.task) == (
        pair.pre.ref,
        str(runs.post()),
        "builtin:capital",
    )
    assert study.between == (pair.pre.ref,) and study.new_task == str(runs.new_task())
    assert set(study.measures) == set(Study(pre="", post="", task="", measures=("all",)).measures)


def test_a_task_that_was_changed_is_refused_with_a_way_out_that_works(monkeypatch, tmp_path):
    """Catches a run of all prompts where twenty were chosen, and advice that leads nowhere."""
    task = mf.tasks.load("builtin:capital")
    for changed in (task.select(range(20), "the first"), task.few_shot(2)):
        with pytest.raises(
            StudyError, match=r"task: a run can be repeated, .* save them"
        ) as refused:
            mf.compare("a", "b", changed)
        assert "\n" not in str(refused.value)
    file = tmp_path / "task.jsonl"
    task.select(range(20), "the first").rows.to_json(file, orient="records", lines=True)
    seen = []
    monkeypatch.setattr(api, "run", lambda settings, out, say: seen.append(settings))
    mf.compare("a", "b", mf.tasks.load(file))
    assert seen[0].task == str(file) and len(mf.tasks.load(file)) == 20


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"prompt": 5},
            StudyError,
            "prompt: Extra inputs are not permitted .* keys: pre, post, task",
        ),
        (
            {"measures": "patchin"},
            StudyError,
            "measures: patchin unknown; want forgetting, patching",
        ),
        ({"prompts": 1}, StudyError, "prompts: Input should be greater than or equal to 2"),
        ({"device": "gpu"}, ModelError, "device 'gpu' is unknown: want cpu, cuda"),
        ({"device": "mps"}, ModelError, "device 'mps' is not supported"),
        ({"server": "http://x"}, ModelError, "server 'http://x' needs backend remote"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_is_opened(options, error, words, monkeypatch):
    """Catches a typo that is found after a download, and pydantic's own page of text."""
    monkeypatch.setattr(api, "run", None)
    with pytest.raises(error, match=words) as refused:
        mf.compare("no/such", "no/such2", "builtin:capital", **options)
    assert "\n" not in str(refused.value) and isinstance(refused.value, MechforgetError)


def test_a_pair_where_a_checkpoint_is_wanted_is_refused_in_a_line():
    """Catches 'Pair(pre=...)' taken for a folder's name."""
    pair = mf.Pair(runs.pre(), runs.post())
    with pytest.raises(
        StudyError, match=r"pre is a Pair: give its checkpoints, compare\(pre, post"
    ):
        mf.compare(pair, runs.task(), None)


def test_help_names_every_option():
    """Catches an option that only the source shows."""
    names = list(inspect.signature(mf.compare).parameters)
    assert names[:3] == ["pre", "post", "task"] and set(Study.model_fields) < set(names)
