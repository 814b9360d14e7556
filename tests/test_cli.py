"""The command, as a person types it: one run, its exports, and ten wrong inputs."""

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mechforget import cli
from mechforget.study.store import Store
from tests import oracle
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

NAMES = "France Italy Spain Japan Peru Germany Egypt Chile".split()
ANSWERS = "Paris Rome Madrid Tokyo Lima Berlin Arabic one".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    save_tiny(root / "pre")
    post = oracle.grafted(tiny_model(), tiny_model(seed=5), 1, 2, "all")
    post.save_pretrained(root / "post")
    tiny_tokenizer().save_pretrained(root / "post")
    rows = [
        {"prompt": f"The capital of {n} is", "answer": a}
        for n, a in zip(NAMES, ANSWERS, strict=True)
    ]
    (root / "task.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return root


def mechforget(*arguments):
    """(exit code, stdout lines, stderr lines), in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv, sys.stdout, sys.stderr
    sys.argv, sys.stdout, sys.stderr = ["mechforget", *map(str, arguments)], out, err
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv, sys.stdout, sys.stderr = before
    return code, out.getvalue().splitlines(), err.getvalue().splitlines()


@pytest.fixture(scope="module")
def run(folder):
    code, out, _ = mechforget(
        *("compare", folder / "pre", folder / "post", "--task", folder / "task.jsonl"),
        *("--out", folder / "run", "--measures", "forgetting,patching,grafting"),
        *("--sites", "head_out", "resid_post"),
    )
    assert code == 0
    return folder / "run", out


def table(run, name, *more):
    code, out, err = mechforget("export", run, name, *more)
    assert (code, err) == (0, [])
    return list(csv.DictReader(out))


def test_export_has_one_row_per_key_and_only_the_data(run):
    """Catches lost or doubled rows, floats for layers, True for true, a mean over something else."""
    rows = table(run[0], "patching")
    assert (
        list(rows[0])
        == (
            "metric direction site layer head effect effect_low effect_high share share_low share_high "
            "p q significant"
        ).split()
    )
    keys = {tuple(r[k] for k in ("metric", "direction", "site", "layer", "head")) for r in rows}
    assert len(keys) == len(rows) == 3 * 2 * (12 + 3 + 1)
    assert {r["head"] for r in rows if r["site"] == "resid_post"} == {""}
    assert {r["layer"] for r in rows if r["site"] == "unembed"} == {""}
    assert {r["significant"] for r in rows} <= {"true", "false"}
    effect = Store(run[0]).get("patching/head_out").effect
    for r in rows[:60]:
        if r["site"] == "head_out":
            at = {k: r[k] for k in ("metric", "direction")}
            mean = effect.sel(layer=int(r["layer"]), head=int(r["head"]), **at).mean("prompt")
            np.testing.assert_allclose(float(r["effect"]), float(mean), rtol=1e-12)
    rows = table(run[0], "forgetting")
    assert list(rows[0])[:7] == "metric pre post change change_low change_high n".split()
    rows = table(run[0], "grafting")
    assert {r["matrix"] for r in rows} == {"all", "q", "k", "v", "o", "mlp", "block", "rest"}
    assert json.loads("\n".join(mechforget("export", run[0], "forgetting", "--format", "json")[1]))


def test_last_residual_and_unembedding_add_up_to_the_forgetting(run):
    """Catches a gap after the last layer that nobody reports."""
    rows = [r for r in table(run[0], "patching") if r["metric"] == "log_prob"]
    lost = -float(table(run[0], "forgetting")[0]["change"])
    for direction in ("restore", "break"):
        here = [r for r in rows if r["direction"] == direction]
        last = next(r for r in here if r["site"] == "resid_post" and r["layer"] == "2")
        rest = next(r for r in here if r["site"] == "unembed")
        np.testing.assert_allclose(float(last["effect"]) + float(rest["effect"]), lost, atol=1e-9)


def test_a_sequence_is_measured_at_each_checkpoint(folder, run, tmp_path):
    """Catches checkpoints measured against another than pre, results of one under the name of the
    other, a last checkpoint that isn't the pair's, and a verdict that waits for the others."""
    middle = oracle.grafted(tiny_model(), tiny_model(seed=5), 0, 1, "all")
    middle.save_pretrained(tmp_path / "middle")
    tiny_tokenizer().save_pretrained(tmp_path / "middle")
    words = ("compare", folder / "pre", folder / "post", "--task", folder / "task.jsonl")
    words += ("--out", tmp_path / "run", "--measures", "forgetting,patching,grafting")
    words += ("--sites", "head_out", "resid_post", "--between", tmp_path / "middle")
    code, out, err = mechforget(*words)
    assert code == 0 and "log_prob along the sequence: " in out[0]
    [other] = [i for i, line in enumerate(err) if line.startswith("checkpoint 1 of 2: ")]
    assert sum("first answer: " in line for line in err[:other]) == 1
    assert "first answer: " not in "".join(err[other:])
    for name in ("forgetting", "patching", "grafting"):
        rows = table(tmp_path / "run", name)
        assert next(iter(rows[0])) == "checkpoint"
        last = [
            {k: v for k, v in r.items() if k != "checkpoint"}
            for r in rows
            if r["checkpoint"] == "2"
        ]
        assert last == table(run[0], name)
        assert len(rows) == 2 * len(last)
    grafts = [r for r in rows if r["checkpoint"] == "1" and r["matrix"] == "all"]
    moved = {(r["layer"], r["head"]) for r in grafts if float(r["effect"])}
    assert ("0", "1") in moved and moved <= {("0", "0"), ("0", "1")}  # its group's k and v
    shown = mechforget("show", tmp_path / "run")[1]
    told = [line.split()[1] for line in shown if "cannot be told" in line]
    assert len(told) > 3 and len(set(told)) == len(told)  # each claim once
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    assert mechforget(*words)[0] == 0
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_a_finished_run_reprints_and_other_settings_are_refused(folder, run):
    """Catches a run that is measured twice, or silently mixed with another."""
    same = (
        *("compare", folder / "pre", folder / "post", "--task", folder / "task.jsonl"),
        *("--out", folder / "run", "--measures", "forgetting,patching,grafting"),
        *("--sites", "head_out", "resid_post"),
    )
    before = (run[0] / "manifest.json").read_bytes()
    code, out, err = mechforget(*same)
    assert (code, out, err) == (0, run[1], [])
    assert (run[0] / "manifest.json").read_bytes() == before
    code, _, err = mechforget(*same, "--seed", "1")
    assert code == 2 and len(err) == 1 and "other settings" in err[0]
    assert (run[0] / "report.html").stat().st_size > 50_000


def test_a_pair_without_change_has_nothing_to_explain(folder, tmp_path):
    """Catches rounding shown as an effect, and culprits without a crime."""
    code, out, _ = mechforget(
        *("compare", folder / "pre", folder / "pre", "--task", folder / "task.jsonl"),
        *("--out", tmp_path / "run", "--measures", "forgetting,patching", "--sites", "z,head_out"),
    )
    assert code == 0
    assert out[-1].startswith("no forgetting to explain")
    rows = table(tmp_path / "run", "patching")
    assert {float(r["effect"]) for r in rows} == {0.0}
    assert {r["significant"] for r in rows} == {"false"}
    assert {r["share"] for r in rows} == {""}


def _wrong(folder: Path, root: Path) -> dict[str, tuple]:
    (root / "empty.jsonl").write_text("")
    (root / "broken.jsonl").write_text('{"prompt": "a"')
    (root / "columns.csv").write_text("question,reply\na,b\n")
    save_tiny(root / "gpt2", "gpt2")
    shutil.copytree(folder / "post", root / "truncated")
    weights = root / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copytree(folder / "post", root / "pickle")
    (root / "pickle" / "model.safetensors").rename(root / "pickle" / "pytorch_model.bin")
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(root / "nan")
    tiny_tokenizer().save_pretrained(root / "nan")
    pre, post, task = folder / "pre", folder / "post", folder / "task.jsonl"
    return {
        "missing path": (pre, root / "nowhere", "--task", task),
        "wrong architecture": (pre, root / "gpt2", "--task", task),
        "empty task": (pre, post, "--task", root / "empty.jsonl"),
        "broken task": (pre, post, "--task", root / "broken.jsonl"),
        "missing columns": (pre, post, "--task", root / "columns.csv"),
        "unknown built-in": (pre, post, "--task", "builtin:nothing"),
        "truncated": (pre, root / "truncated", "--task", task),
        "pickle": (pre, root / "pickle", "--task", task),
        "NaN": (pre, root / "nan", "--task", task),
        "unknown measure": (pre, post, "--task", task, "--measures", "charm"),
        "unknown site": (pre, post, "--task", task, "--sites", "charm"),
        "negative few-shot": (pre, post, "--task", task, "--few-shot", "-1"),
        "a server's device": (pre, post, "--task", task, "--backend", "remote", "--device", "disk"),
        "negative seed": (pre, post, "--task", task, "--seed", "-1"),
        "a checkpoint between that is none": (pre, post, "--task", task, "--between", root / "nan"),
    }


def test_wrong_inputs_are_one_line_exit_2_and_no_run(folder, tmp_path):
    """Catches tracebacks, half-made runs, and errors that come after an hour."""
    for name, arguments in _wrong(folder, tmp_path).items():
        code, out, err = mechforget("compare", *arguments, "--out", tmp_path / "run")
        assert code == 2, name
        assert out == [], name
        assert len(err) == 1 and err[0].startswith("mechforget: "), (name, err)
        assert not (tmp_path / "run").exists(), name


def test_an_interrupt_keeps_what_was_finished(folder, tmp_path, monkeypatch):
    """Catches a Ctrl-C that loses results or shows a traceback, and a resume that starts again."""
    from mechforget import measures

    real = measures.patching

    def stop(inputs, **settings):
        if settings["site"] == "z":
            raise KeyboardInterrupt
        return real(inputs, **settings)

    words = ("compare", folder / "pre", folder / "post", "--task", folder / "task.jsonl")
    words += ("--out", tmp_path / "run", "--measures", "forgetting,patching")
    words += ("--sites", "z", "head_out")
    monkeypatch.setattr(measures, "patching", stop)
    assert mechforget(*words)[0] == 130
    assert Store(tmp_path / "run").manifest["finished"] == ["forgetting", "patching/head_out"]
    sites = []
    monkeypatch.setattr(
        measures, "patching", lambda i, **s: (sites.append(s["site"]), real(i, **s))[1]
    )
    assert mechforget(*words)[0] == 0
    assert sites == ["z"]


def test_what_a_model_does_not_show_is_left_out_and_said_or_refused_where_it_was_named(
    folder, tmp_path
):
    """Catches defaults that fail halfway through, on Llama 4, and a wish that is dropped silently."""
    for seed in (0, 1):
        save_tiny(tmp_path / str(seed), "llama4_text", seed)
    words = ("compare", tmp_path / "0", tmp_path / "1", "--task", folder / "task.jsonl")
    code, _, err = mechforget(*words, "--out", tmp_path / "run", "--measures", "attention_change")
    assert (code, len(err)) == (2, 1) and "attention_change: a llama4" in err[0]
    assert not (tmp_path / "run").exists()
    code, out, _ = mechforget(*words, "--out", tmp_path / "run")
    assert code == 0
    assert any("attention_change left out: a llama4_text model" in line for line in out)
    assert "attention_change" not in Store(tmp_path / "run").manifest["finished"]
    assert "sets" in Store(tmp_path / "run").manifest["finished"]


def test_plant_and_compare(folder):
    """Catches a planted checkpoint that compare can't open, damage that isn't found where it was
    put, and options that don't reach it."""
    code, out, err = mechforget(
        *("plant", folder / "pre", folder / "planted", "--scramble", "L2H1.q", "L2H0.o"),
        *("--overwrite", "L0", "--amount", "2", "--seed", "5"),
    )
    assert (code, err) == (0, [])
    assert out == [
        "scramble q of L2H1: model.layers.2.self_attn.q_proj.weight",
        "scramble o of L2H0: model.layers.2.self_attn.o_proj.weight",
        "overwrite mlp of L0: "
        + ", ".join(f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        f"planted: {folder / 'planted'}",
    ]
    truth = json.loads((folder / "planted" / "planted.json").read_text())
    assert (truth["heads"], truth["mlps"], truth["seed"]) == ([[2, 0], [2, 1]], [0], 5)
    assert {one["amount"] for one in truth["damages"]} == {2.0}
    code, _, _ = mechforget(
        *("compare", folder / "pre", folder / "planted", "--task", folder / "task.jsonl"),
        *("--out", folder / "planted-run", "--measures", "forgetting,grafting"),
    )
    assert code == 0
    rows = table(folder / "planted-run", "grafting")
    moved = {
        (r["layer"], r["head"])
        for r in rows
        if r["head"] and r["matrix"] == "all" and float(r["effect"])
    }
    assert moved == {("2", "0"), ("2", "1")}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "nothing to plant: want one of scramble, rotate, compensate, overwrite, redirect"),
        (("--scramble", "L7H0"), "no layer 7: this model has layers 0 to 2"),
        (("--rotate", "L1H9.q"), "no head 9: this model has heads 0 to 3"),
        (("--redirect", "L1"), "layer 1 is no mixture of experts; those are: none"),
        (("--overwrite", "L1H1"), "overwrite L1H1: want a layer"),
        (
            ("--scramble", "head 3"),
            "place 'head 3': want a layer (L3), an expert (L3E1), or a head",
        ),
        (("--scramble", "L1H1", "--amount", "0"), "amount 0: want a number above 0"),
    ],
)
def test_a_wrong_plant_is_one_line(folder, options, words):
    """Catches a traceback, and a folder that is left behind."""
    code, out, err = mechforget("plant", folder / "pre", folder / "none", *options)
    assert (code, out, len(err)) == (2, [], 1)
    assert words in err[0]
    assert not (folder / "none").exists()


def test_plant_writes_over_nothing(folder):
    """Catches a checkpoint that is lost."""
    code, _, err = mechforget("plant", folder / "pre", folder / "post", "--scramble", "L1H1")
    assert code == 2 and "post exists already: choose another out, or remove it" in err[0]
