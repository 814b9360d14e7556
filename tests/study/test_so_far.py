"""What a run says before it is finished, and that nothing depends on the order in which it measures."""

import json
import shutil

import pytest
import xarray as xr

from mechforget.study import run as study_run
from mechforget.study.catalogue import early, tables
from mechforget.study.store import Store
from mechforget.study.verdict import verdict
from tests import runs

FEW = ("--measures", "forgetting,patching,attribution,grafting,sets,weights,drift")


def words(out, *more):
    return (
        *("compare", runs.pre(), runs.post(), "--task", runs.task(), "--new-task", runs.new_task()),
        *("--graft-top", 3, "--out", out, *more),
    )


def at(lines: list[str], start: str) -> int:
    """The line that begins so; there has to be one."""
    [found] = [i for i, line in enumerate(lines) if line.startswith(start)]
    return found


@pytest.fixture(scope="module")
def backwards(tmp_path_factory):
    """The run of `runs.compared`, its jobs made in another order: after the forgetting the dearest
    first, as far as what they read allows it."""
    made = study_run.jobs

    def turned(*scope):
        first, *others = made(*scope)
        found, waiting = [first], others[::-1]
        names = {job.name for job in waiting}
        while waiting:
            done = {job.name for job in found}
            ready = next(j for j in waiting if not (names.intersection(j.after) - done))
            waiting.remove(ready)
            found.append(ready)
        return found

    out = tmp_path_factory.mktemp("run") / "backwards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_run, "jobs", turned)
        said = runs.mechforget(*words(out))
    assert said.code == 0, said.err
    return out, said


def test_nothing_depends_on_the_order_of_the_jobs(backwards):
    """Catches rows in the order in which sites were measured, and a job that changes what a later
    one measures."""
    out, said = backwards
    usual, usual_said = runs.compared()
    order, other = (
        json.loads((run / "manifest.json").read_text())["finished"] for run in (out, usual)
    )
    assert order != other and sorted(order) == sorted(other)
    for name in other:
        one, two = (Store(run).get(name) for run in (out, usual))
        xr.testing.assert_identical(one, two)
    for name in tables():
        one, two = (runs.mechforget("export", run, name) for run in (out, usual))
        assert one.code == two.code and one.out == two.out, name
    paths = [said.out.replace(str(out), "RUN"), usual_said.out.replace(str(usual), "RUN")]
    assert paths[0] == paths[1]


def test_a_table_of_the_early_verdict_is_not_kept():
    """Catches a report that lacks what was measured after its tables were first computed."""
    run, _ = runs.compared()
    while_it_ran = (run / "report.html").read_bytes()
    assert runs.mechforget("report", run).code == 0
    assert (run / "report.html").read_bytes() == while_it_ran


def test_the_verdict_reads_early_results_only():
    """Catches a verdict that is said early and is another one at the end."""
    whole = Store(runs.compared()[0])
    part = Store(whole.path)
    part.manifest["finished"] = [name for name in whole.finished if name in early()]
    assert len(part.finished) < len(whole.finished)
    assert verdict(part) == verdict(whole)
    assert verdict(part).sentence.count(";") == 2  # where it is expressed, and written


def test_answers_are_said_as_soon_as_they_are_there():
    """Catches a first answer that waits for the estimate, a verdict that waits for all measures, and
    one that is said twice or differs from the last one."""
    _, said = runs.compared()
    lines = said.err.splitlines()
    first = at(lines, "first answer: The old task lost ")
    assert lines[first - 1].startswith("forgetting: ")
    assert first < at(lines, "estimated: ")
    sentence = said.out.splitlines()[-1]
    assert sentence.startswith(lines[first].removeprefix("first answer: ").removesuffix("."))
    told = at(lines, "verdict, before the other measures are made: ")
    assert lines[told].endswith(f": {sentence}")
    made = {line.split(": ")[0] for line in lines[:told] if line.endswith(" s")}
    assert made - {"estimated"} == early() - {
        "control_twin/patching/head_out",
        "control_old/patching/head_out",
    }
    assert lines[told + 1 :] and " s" in lines[told + 1]


def test_the_first_map_names_the_heads_that_the_estimate_names(tmp_path):
    """Catches a map of another metric or direction, of the smallest effects, one that is said after
    the exact effects, and one that promises what the study doesn't measure."""
    out = tmp_path / "run"
    said = runs.mechforget(*words(out, "--measures", "forgetting,attribution,weights"))
    lines = said.err.splitlines()
    line = lines[at(lines, "first map, estimated from gradients: ")]
    effect = xr.open_zarr(
        out / "store.zarr", group="attribution/head_out", consolidated=False
    ).effect
    for direction, start in (("restore", "gives back most in "), ("break", "costs most in ")):
        mean = effect.sel(metric="log_prob", direction=direction).mean("prompt").to_series()
        best = mean.reorder_levels(["layer", "head"]).nlargest(3)
        want = [f"L{a}H{b} ({value:.3g} nats)".replace("-", "−") for (a, b), value in best.items()]
        assert line.split(start)[1].startswith(", ".join(want))
    assert "exact patching follows" not in line and "verdict, before" not in said.err


def test_nothing_is_said_of_heads_where_nothing_was_forgotten(tmp_path):
    """Catches culprits without a crime."""
    same = (
        "compare",
        runs.pre(),
        runs.pre(),
        "--task",
        runs.task(),
        "--out",
        tmp_path / "run",
        *FEW,
    )
    said = runs.mechforget(*same)
    assert "first answer: no forgetting to explain: " in said.err
    assert "first map" not in said.err and "verdict, before" not in said.err


@pytest.mark.parametrize("stopped", ["check_completeness", "estimate"])
def test_a_run_that_was_stopped_after_its_first_answer_goes_on(stopped, tmp_path, monkeypatch):
    """Catches a first answer that is measured again, one of checkpoints that were replaced since,
    and a check that is lost or made twice."""

    def stop(*_):
        raise KeyboardInterrupt

    out, post = tmp_path / "run", tmp_path / "post"
    shutil.copytree(runs.post(), post)
    asked = (
        *("compare", runs.pre(), post, "--task", runs.task(), "--out", out),
        *("--measures", "forgetting,drift"),
    )
    with monkeypatch.context() as patch:
        patch.setattr(study_run, stopped, stop)
        said = runs.mechforget(*asked)
    assert said.code == 130 and "first answer: " in said.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["finished"] == ["forgetting"] and set(manifest["digests"]) == {"pre", "post"}

    weights = post / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes((runs.half() / "model.safetensors").read_bytes())
    refused = runs.mechforget(*asked)
    assert refused.code == 2 and "post changed since" in refused.err
    weights.write_bytes(kept)

    said = runs.mechforget(*asked)
    assert said.code == 0 and "forgetting: " not in said.err.replace("estimated", "")
    names = [c["name"] for c in json.loads((out / "manifest.json").read_text())["checks"]]
    assert len(names) == len(set(names)) and any("restore 100 %" in name for name in names)
