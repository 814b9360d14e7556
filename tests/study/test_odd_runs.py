"""Runs that are not the usual one: what they lack is known before, and their tables are theirs."""

import csv
import io
import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from mechforget.checkpoints import Pair
from mechforget.errors import StudyError
from mechforget.measures import Inputs, top_sets
from mechforget.measures.weights import lacks_for_streaming
from mechforget.models.opening import proven
from mechforget.planning.scan import placeholders
from mechforget.study.available import available, lacking
from mechforget.study.export import table as export
from mechforget.study.export import write
from mechforget.study.scene import Scene
from mechforget.study.settings import study
from mechforget.study.store import Store
from tests import runs
from tests.tiny import save_tiny, tiny_model


def pair(tmp_path, family="llama"):
    return [save_tiny(tmp_path / name, family, seed) for name, seed in (("pre", 0), ("post", 1))]


def compared(tmp_path, *words, task=None, family="llama"):
    said = runs.mechforget(
        *("compare", *pair(tmp_path, family), "--task", task or runs.task()),
        *("--out", tmp_path / "run", *words),
    )
    assert said.code == 0, said.err
    return Store(tmp_path / "run"), said


def test_files_that_cannot_be_streamed_are_known_before_the_run(tmp_path):
    """Would catch: `weights` that ends a run in its middle, of a GGUF or a quantised checkpoint."""
    pre, post = pair(tmp_path)
    assert lacks_for_streaming(Pair(pre, post)) == ""
    config = json.loads((post / "config.json").read_text())
    (post / "config.json").write_text(json.dumps({**config, "quantization_config": {}}))
    assert "is quantised" in lacks_for_streaming(Pair(pre, post))


def test_a_screen_without_attribution_is_refused(tmp_path, monkeypatch):
    """Would catch: a screened run that ends when it wants to rank heads by what was left out."""
    model = proven(tiny_model(), "nnsight")
    inputs = Inputs(model, model, placeholders(model.spec.d_vocab, 4, 8))
    asked = study(pre="a", post="b", task="t", backend="nnsight", screen=4)
    assert available(asked, model.spec, lacking(Scene(asked, inputs)))[0].screen == 4
    lacks = {"attribution": "needs gradients"}
    with pytest.raises(StudyError, match="screen: no attribution"):
        available(asked, model.spec, lacks)


def test_sets_hold_heads_that_were_patched():
    """Would catch: heads that a screen left out among the strongest."""
    pre, post = (proven(tiny_model(seed=s), "nnsight") for s in (0, 1))
    inputs = Inputs(pre, post, placeholders(post.spec.d_vocab, 4, 8))
    effect = np.full((post.spec.layers, post.spec.heads, 4), np.nan)
    effect[0, 1], effect[1, 2], effect[2, 0] = 3.0, 2.0, 1.0
    found = top_sets(inputs, effect=xr.DataArray(effect, dims=("layer", "head", "prompt")))
    assert found.k.values.tolist() == [1, 2]
    assert {tuple(at) for at in found.chosen.values[:, 1].reshape(-1, 2).tolist()} == {
        (0, 1),
        (1, 2),
    }


def test_prompts_of_one_token(tmp_path):
    """Would catch: geometry of first tokens that ends a run in its middle, claims that fail on
    gradients which are nowhere, and ratios of curvature without their value."""
    words = ("Paris", "Rome", "Madrid", "Berlin", "Tokyo", "Lima", "dog", "go", "France", "Italy")
    rows = [{"prompt": w, "answer": a} for w, a in pairwise(words)]
    old, new = (runs.write_task(tmp_path / f"{n}.jsonl", rows) for n in ("old", "new"))
    store, said = compared(
        tmp_path, "--new-task", new, "--measures", "all", "--sites", "head_out", task=old
    )
    for name in ("drift", "readout", "similarity"):
        assert f"{name} left out: " in said.out
    bent = export(store, "landscape")
    bent = bent[bent["quantity"].str.startswith("post / pre") & bent["low"].notna()]
    assert len(bent) and bent["value"].between(bent["low"], bent["high"]).all()
    assert export(store, "claims").set_index("claim").loc[4, "verdict"].startswith("cannot be told")


def test_a_resumed_run_is_of_the_same_new_task_and_controls(tmp_path):
    """Would catch: half of a run from one new task or twin, and half from another."""
    twin = save_tiny(tmp_path / "twin", seed=2)
    new = runs.write_task(tmp_path / "new.jsonl", runs.rows(8))
    words = ("--new-task", new, "--control-twin", twin, "--measures", "forgetting")
    store, _ = compared(tmp_path, *words)
    del store.manifest["complete"]
    store.save()
    again = ("compare", tmp_path / "pre", tmp_path / "post", "--task", runs.task(), *words)
    runs.write_task(new, runs.rows(9))
    said = runs.mechforget(*again, "--out", tmp_path / "run")
    assert said.code == 2 and "the new task changed since" in said.err
    runs.write_task(new, runs.rows(8))
    save_tiny(twin, seed=3)
    said = runs.mechforget(*again, "--out", tmp_path / "run")
    assert said.code == 2 and "control_twin changed since" in said.err


def test_json_has_no_infinity(capsys):
    """Would catch: a traceback where a tensor was zero before, whose relative change is infinite."""
    write(pd.DataFrame({"relative": [np.inf, 1.0], "n": [1, 2]}), "json", None)
    assert json.loads(capsys.readouterr().out)[0] == {"relative": None, "n": 1}


def test_each_expert_has_its_row(tmp_path):
    """Would catch: experts' effects that can't be told apart, and one of them shown as its layer's."""
    store, _ = compared(
        tmp_path, "--backend", "nnsight", "--measures", "patching", "grafting", "--sites",
        "expert_out", "head_out", family="qwen3_moe",
    )  # fmt: skip
    table = export(store, "patching")
    of_experts = table[table["site"] == "expert_out"]
    assert of_experts["expert"].notna().all()
    assert not table.duplicated(["metric", "direction", "site", "layer", "head", "expert"]).any()
    want = store.get("patching/expert_out").effect.sel(metric="log_prob", direction="restore")
    row = of_experts.set_index(["metric", "direction", "layer", "expert"]).loc[
        ("log_prob", "restore", 1, 2)
    ]
    assert row["effect"] == pytest.approx(float(want.sel(layer=1, expert=2).mean()))
    written = export(store, "grafting")
    rows = written[written["matrix"] == "expert"].set_index(
        ["metric", "direction", "layer", "expert"]
    )
    want = store.get("grafting/experts").effect.sel(metric="log_prob", direction="break")
    got = rows.loc[("log_prob", "break", 2, 1)]
    assert got["effect"] == pytest.approx(float(want.sel(layer=2, expert=1).mean()))
    assert written.loc[written["matrix"] == "block", "layer"].nunique() == 3
    assert runs.mechforget("report", tmp_path / "run").code == 0


def test_sites_without_heads_and_runs_without_results(tmp_path):
    """Would catch: tracebacks of commands that read a run, and a site that is measured twice."""
    store, _ = compared(tmp_path, "--measures", "patching", "--sites", "mlp_out", "mlp_out")
    assert not export(store, "patching").duplicated(["metric", "direction", "site", "layer"]).any()
    shown = runs.mechforget("show", tmp_path / "run")
    assert shown.code == 0 and "the paper's claims" in shown.out
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "manifest.json").write_text(
        json.dumps({"settings": store.manifest["settings"], "finished": []})
    )
    for command in ("report", "show"):
        said = runs.mechforget(command, begun)
        assert said.code == 2 and len(said.err.strip().splitlines()) == 1, said.err


def test_no_contrast_is_made_of_a_metric_that_is_not_there(tmp_path):
    """Would catch: `not under logit_diff` of a task that has no wrong answers."""
    pre, post = runs.pre(), runs.post()
    rows = [{"prompt": r["prompt"], "answer": "Paris"} for r in runs.rows()]
    task = runs.write_task(tmp_path / "task.jsonl", rows)
    said = runs.mechforget(
        *("compare", pre, post, "--task", task, "--out", tmp_path / "run"),
        *("--measures", "patching", "--sites", "head_out"),
    )
    assert said.code == 0, said.err
    assert np.isnan(Store(tmp_path / "run").get("forgetting").score.sel(metric="logit_diff")).all()
    assert "logit_diff" not in said.out.strip().splitlines()[-1]


def test_weights_of_groups_are_no_heads(tmp_path):
    """Would catch: a group's change joined to the head of the same number."""
    store, _ = compared(tmp_path, "--measures", "weights,attribution,patching", "--sites", "z")
    table = export(store, "weights")
    groups = table[table["kind"] == "group"]
    assert set(groups["matrix"]) == {"W_K", "W_V"} and groups["head"].isna().all()
    assert set(groups["group"]) == set(range(runs.GROUPS))
    assert set(table.loc[table["kind"] == "head", "matrix"]) == {"W_Q", "W_O"}
    out = runs.mechforget("export", tmp_path / "run", "attribution").out
    assert {row["site"] for row in csv.DictReader(io.StringIO(out))} == {"z"}


def test_a_setting_that_an_old_run_lacks_counts_as_its_default(tmp_path):
    """Would catch: a run of an earlier version that can't be resumed, or one that is resumed with
    another value of a setting that it didn't know."""
    settings = study(pre="a", post="b", task="t").model_dump(mode="json")
    older = {k: v for k, v in settings.items() if k not in ("half_donors", "graft_top")}
    Store(tmp_path / "run", older)
    assert Store(tmp_path / "run", settings).manifest["settings"] == older
    with pytest.raises(StudyError, match="other settings \\(graft_top 16 there, 3 now\\)"):
        Store(tmp_path / "run", settings | {"graft_top": 3})
