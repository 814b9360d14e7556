"""A run that is cut off, by a kill, by Ctrl-C or by a full disk, and goes on."""

import csv
import io
import json
import shutil
import signal
from collections import Counter

import pytest

from mechforget.study.store import Chunks
from tests import held, runs

SITES = ("z", "head_out", "q", "k", "v", "attn_out", "mlp_out", "resid_pre", "resid_post")
WORDS = ("--measures", "forgetting,patching", "--sites", ",".join(SITES), "--memory", "4e-4")
# Stops in the middle of a sweep's third chunk: its folder is there, its values aren't yet.
IN_A_CHUNK = """
from mechforget.study import store
write, chunks = store._write, []
def torn(data, path, group=None):
    if "patching" not in path.parent.name:
        return write(data, path, group)
    chunks.append(path)
    if len(chunks) < 3:
        return write(data, path, group)
    write(data.drop_vars("effect"), path, group)
    hold()
store._write = torn
"""


def words(out):
    return ("compare", runs.pre(), runs.post(), "--task", runs.task(), "--out", out, *WORDS)


def counted(patch) -> Counter[str]:
    """Chunks that are written from here on, by result."""
    written: Counter[str] = Counter()
    add = Chunks.add
    patch.setattr(
        Chunks, "add", lambda self, chunk: (written.update([self.folder.name]), add(self, chunk))
    )
    return written


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not disturbed: its folder, what it said, how many chunks its results had."""
    out = tmp_path_factory.mktemp("run") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        written = counted(patch)
        said = runs.mechforget(*words(out))
    assert said.code == 0, said.err
    assert min(written[n] for n in written if "patching" in n) > 4
    return out, said, written


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_cut_off_in_the_middle_of_a_sweep(whole, tmp_path, monkeypatch, sent):
    """Catches finished chunks that are lost or doubled, a torn one that is taken for whole, other
    numbers after resuming, chunks of another size though more memory is offered now, and a
    traceback where Ctrl-C was pressed."""
    out = tmp_path / "run"
    child = held.start(IN_A_CHUNK + held.COMMAND, *words(out))
    held.until_held(child)
    child.send_signal(sent)
    _, err = child.communicate()
    manifest = json.loads((out / "manifest.json").read_text())
    assert "forgetting" in manifest["finished"] and "complete" not in manifest
    kept = Counter(chunk.parent.name for chunk in out.glob("parts/*/*.zarr"))
    assert [n for name, n in kept.items() if "patching" in name] == [2]
    if sent == signal.SIGINT:
        assert child.returncode == 130 and "Traceback" not in err
        assert err.splitlines()[-1].startswith("mechforget: interrupted; what was finished is kept")

    added = counted(monkeypatch)
    said = runs.mechforget(*words(out)[:-1], "1")  # the run keeps the memory it began with
    for name, chunks in whole[2].items():  # each chunk once, before or after
        assert added[name] in (0, chunks - kept[name]), name
    assert 0 < added.total() < whole[2].total() - kept.total()
    assert said.out.splitlines()[-1] == whole[1].out.splitlines()[-1]
    for measure in ("forgetting", "patching"):
        tables = (runs.mechforget("export", run, measure).out for run in (out, whole[0]))
        found, want = (list(csv.DictReader(io.StringIO(table))) for table in tables)
        assert len(found) == len(want) > 0
        for row, other in zip(found, want, strict=True):
            for name, value in row.items():
                if name.startswith(("effect", "change")) and value:
                    assert float(value) == pytest.approx(float(other[name]), abs=1e-5)
                elif name in ("metric", "direction", "site", "layer", "head", "n"):
                    assert value == other[name]


def test_a_full_disk_is_one_line_and_the_run_goes_on(whole, tmp_path):
    """By a limit on file sizes. Catches a traceback, exit 2, and a run that must be made anew."""
    resource = pytest.importorskip("resource")  # not on Windows
    out = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))  # the manifest needs more
    try:
        said = runs.mechforget(*words(out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said.code == 1 and said.out == ""
    assert said.err.count("\n") == 1 and said.err.startswith("mechforget: File too large")
    said = runs.mechforget(*words(out))
    assert said.code == 0
    assert said.out.splitlines()[-1] == whole[1].out.splitlines()[-1]


def test_a_run_of_an_earlier_version_is_read_and_not_gone_on_with(whole, tmp_path):
    """Catches chunks of two versions, which part prompts in two ways, in one result; and a finished
    run that can't be read any more, or is measured anew."""
    old = tmp_path / "old"
    shutil.copytree(whole[0], old)
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["layout"], manifest["memory"]
    manifest["settings"]["memory"] = 0.5  # as it was by default
    (old / "manifest.json").write_text(json.dumps(manifest))
    said = runs.mechforget(*words(old)[:-2])
    assert said.code == 0 and said.out.splitlines()[-1] == whole[1].out.splitlines()[-1]
    del manifest["complete"]
    manifest["finished"].remove("patching/z")
    (old / "manifest.json").write_text(json.dumps(manifest))
    said = runs.mechforget(*words(old))
    assert said.code == 2 and said.err.count("\n") == 1
    assert "was begun by an earlier version" in said.err and "another --out" in said.err
    assert runs.mechforget("export", old, "patching").code == 0


def test_another_checkpoint_or_task_under_the_same_name_is_refused(tmp_path):
    """Catches a resumed run whose second half is of another model."""
    post = runs.noisy(runs.pre(), "replaced", 0.02)
    task = runs.write_task(tmp_path / "task.jsonl", runs.rows())
    words = ("compare", runs.pre(), post, "--task", task, "--out", tmp_path / "run")
    words += ("--measures", "forgetting,patching", "--sites", "z")
    assert runs.mechforget(*words).code == 0
    manifest = tmp_path / "run" / "manifest.json"
    unfinished = json.loads(manifest.read_text())
    del unfinished["complete"]
    manifest.write_text(json.dumps(unfinished))
    runs.write_task(task, runs.rows(12))
    runs.noisy(runs.pre(), "replaced", 0.02, seed=1)
    said = runs.mechforget(*words)
    assert said.code == 2 and "post, the task changed since" in said.err
