"""A sequence: each θ_t from the one before, R against a loop by hand, resumed after a kill."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from mechforget import checkpoints
from mechforget.errors import CheckpointError, StudyError, TaskError
from mechforget.study.verdict import number
from mechforget.training import Settings, finetune, train
from tests import held, runs
from tests.tiny import save_tiny, tiny_tokenizer
from tests.training.conftest import answer_log_probs, task, write

FOLDERS = ["1-capital", "2-currency"]
# Stops after the second optimizer step of the second task, which has four.
IN_THE_SECOND = """
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from mechforget.training import train
torch.set_num_threads(1)
steps = []
def stepped(*_):
    steps.append(0)
    if len(steps) == 3 + 2:
        hold()
register_optimizer_step_post_hook(stepped)
train(sys.argv[1])
"""


def sequence(
    folder: Path, base: Path, names=("capital", "currency"), old=("plural",), top=""
) -> Path:
    """Writes SEQUENCE.toml and the tasks' files; `out` is folder/out."""
    text = f'base = "{base}"\nout = "{folder / "out"}"\nseed = 5\n{top}\n'
    text += "".join(f'[[old]]\nsource = "{write(name, folder)}"\n' for name in old)
    for t, name in enumerate(names, start=3):
        text += f'[[tasks]]\nsource = "{write(name, folder)}"\nsteps = {t}\n'
        text += f"learning_rate = 1e-2\nbatch_size = {t}\n"
    file = folder / "SEQUENCE.toml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """(folder, R) of a sequence that was not disturbed."""
    folder = tmp_path_factory.mktemp("sequence")
    return folder, train(sequence(folder, base))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def files(out: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for f in out.rglob("*.safetensors")}


def test_R_is_that_of_a_loop_by_hand(base, whole):
    """θ_t loaded by transformers alone, one prompt after the other. Catches a transposed matrix, a
    θ_t scored as its neighbour, tasks in another order, sums for means, padding that is counted."""
    folder, found = whole
    names = ["plural", "capital", "currency"]
    places = [base, *(folder / "out" / name for name in FOLDERS)]
    assert list(found["checkpoint"].values) == ["base", *FOLDERS]
    assert list(found["task"].values) == names
    assert list(found["trained"].values) == [0, 1, 2]
    assert list(found["n"].values) == [3, 5, 3]
    assert found["log_prob"].dims == ("checkpoint", "task")
    assert found["log_prob"].attrs["units"] == "nats"
    tokenizer = tiny_tokenizer()
    for t, place in enumerate(places):
        model = AutoModelForCausalLM.from_pretrained(place).eval()
        for i, name in enumerate(names):
            rows = task(name).rows.values
            by_hand = [answer_log_probs(model, tokenizer, p, a) for p, a in rows]
            each = [sum(log_p) for log_p, _ in by_hand]
            right = [right for _, right in by_hand]
            n = len(rows)
            np.testing.assert_allclose(found["log_prob_prompt"][t, i, :n], each, atol=1e-4)
            assert np.isnan(found["log_prob_prompt"][t, i, n:]).all()
            assert float(found["log_prob"][t, i]) == pytest.approx(np.mean(each), abs=1e-4)
            assert float(found["correct"][t, i]) == pytest.approx(np.mean(right))
            np.testing.assert_array_equal(found["cluster"][i, :n], task(name).clusters)
            assert (found["cluster"][i, n:] == -1).all()
    # each task is best known right after it was trained
    assert found["log_prob"].values.argmax(0)[1:].tolist() == [1, 2]


def test_each_checkpoint_is_trained_from_the_one_before(base, whole, tmp_path):
    """Catches θ_2 trained from θ_0, settings of another task, and a seed that is not passed on."""
    folder, _ = whole
    first, second = (folder / "out" / name for name in FOLDERS)
    record = json.loads((second / "training.json").read_text())
    assert record["base_digest"] == hashlib.sha256(weights(first)).hexdigest()
    how = Settings(steps=4, learning_rate=1e-2, batch_size=4, seed=5)
    alone = finetune(first, task("currency"), tmp_path / "alone", how)
    assert weights(alone) == weights(second) != weights(first)
    checkpoints.Sequence([base, first, second]).check()


def test_the_scores_are_kept(whole):
    """Catches a file that lacks a checkpoint, a task or a prompt, or rounds."""
    folder, found = whole
    kept = json.loads((folder / "out" / "scores.json").read_text())
    assert [x["label"] for x in kept["checkpoints"]] == ["base", *FOLDERS]
    assert [(x["name"], x["trained"], x["prompts"]) for x in kept["tasks"]] == [
        ("plural", 0, 3),
        ("capital", 1, 5),
        ("currency", 2, 3),
    ]
    for t, checkpoint in enumerate(kept["checkpoints"]):
        for i, name in enumerate(("plural", "capital", "currency")):
            for metric, values in checkpoint["scores"][name].items():
                there = found[f"{metric}_prompt"][t, i, : len(values)]
                assert values == there.values.tolist()


def test_a_finished_sequence_is_not_made_again(base, whole, capfd, monkeypatch):
    """Catches work on a rerun, another answer, and anything printed in a pipe."""
    folder, found = whole
    before = files(folder / "out")
    monkeypatch.setattr(checkpoints.Checkpoint, "load", lambda *_, **__: pytest.fail("it works"))
    again = train(folder / "SEQUENCE.toml")
    assert again.identical(found) and files(folder / "out") == before
    assert capfd.readouterr() == ("", "")


def test_killed_while_the_second_task_is_trained(base, whole, tmp_path):
    """A real kill -9. Catches a half-made folder that looks finished, a finished one that is lost,
    and a resumed sequence whose numbers differ."""
    file = sequence(tmp_path, base)
    out = tmp_path / "out"
    child = held.start(IN_THE_SECOND, file)
    held.until_held(child)
    assert (out / ".2-currency.partial").exists()
    child.kill()
    child.communicate()
    assert not (out / "2-currency").exists()
    first = files(out / "1-capital")
    kept = json.loads((out / "scores.json").read_text())
    assert [x["label"] for x in kept["checkpoints"]] == ["base", "1-capital"]

    found = train(file)
    assert files(out / "1-capital") == first
    assert weights(out / "2-currency") == weights(whole[0] / "out" / "2-currency")
    assert found.identical(whole[1])
    assert sorted(p.name for p in out.iterdir()) == [*FOLDERS, "scores.json"]


def test_the_command_prints_the_scores_and_what_the_sequence_cost(whole):
    """Catches a command that trains and then fails to print, another metric's accuracy, and a loss
    with the wrong sign. The sequence is finished, so nothing is trained."""
    folder, found = whole
    said = runs.mechforget("train", folder / "SEQUENCE.toml")
    assert said.code == 0, said.err
    lines = said.out.strip().splitlines()
    r = found["log_prob"].values
    for i, (name, first) in enumerate(zip(found.task.values, (0, 1, 2), strict=True)):
        (line,) = [one for one in lines if one.startswith(f"{name}: lost ")]
        assert f"lost {number(r[first, i] - r[-1, i])} (" in line
    accuracy = number(float(found["correct"].values[-1].mean()))
    assert lines[-1].startswith(f"average accuracy at the end: {accuracy} (")


def test_more_tasks_at_the_end(base, whole, tmp_path):
    """A → B → A: a task that comes back is one column. Catches a sequence that starts anew when
    it grows, a column twice, and `trained` of the second time."""
    folder, found = whole
    shutil.copytree(folder / "out", tmp_path / "out", copy_function=shutil.copy2)
    before = files(tmp_path / "out")
    longer = train(sequence(tmp_path, base, ("capital", "currency", "capital")))
    assert before.items() <= files(tmp_path / "out").items()
    assert list(longer["checkpoint"].values) == ["base", *FOLDERS, "3-capital"]
    assert list(longer["trained"].values) == [0, 1, 2]
    np.testing.assert_array_equal(longer["log_prob"][:3], found["log_prob"])
    assert longer["log_prob"][3, 1] > longer["log_prob"][2, 1]


def test_lora_in_order(base, tmp_path):
    """Catches an adapter on an adapter, and a matrix of the base alone."""
    found = train(sequence(tmp_path, base, top='method = "lora"\nrank = 2'))
    for name in FOLDERS:
        opened = checkpoints.open(tmp_path / "out" / name)
        assert opened.base is not None and opened.base.path == base.resolve()
    assert found["log_prob"][1, 1] > found["log_prob"][0, 1]
    assert found["log_prob"][2, 2] > found["log_prob"][1, 2]


def test_out_that_is_another_sequence(base, whole, tmp_path):
    """Catches results of two sequences in one folder, seen before a step is trained."""
    folder, _ = whole
    shutil.copytree(folder / "out", tmp_path / "out", copy_function=shutil.copy2)
    shutil.rmtree(tmp_path / "out" / "1-capital")  # so there would be work to do
    before = files(tmp_path / "out")
    file = sequence(tmp_path, base)
    good = file.read_text()
    for text, words in (
        (good.replace("steps = 4", "steps = 5"), "2-currency was trained with steps = 4, not 5"),
        (good.replace("seed = 5", "seed = 6"), "2-currency was trained with seed = 5, not 6"),
    ):
        file.write_text(text)
        with pytest.raises(StudyError, match=words):
            train(file)
    with pytest.raises(StudyError, match="out holds 2-currency, which is not of this sequence"):
        train(sequence(tmp_path, base, ["capital"]))
    assert files(tmp_path / "out") == before

    shutil.copytree(folder / "out", tmp_path / "scored" / "out")
    (tmp_path / "scored" / "out" / "scores.json").write_text('{"tasks"')
    with pytest.raises(StudyError, match=r"scores\.json is damaged .*: remove it"):
        train(sequence(tmp_path / "scored", base))
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "out").write_text("mine")
    with pytest.raises(StudyError, match="is a file"):
        train(sequence(tmp_path / "file", base))


def test_scores_of_other_weights_are_not_reused(base, whole, tmp_path):
    """Catches a matrix kept for another base, or for rows that were edited since."""
    folder, found = whole
    other = save_tiny(tmp_path / "other", "llama", 1)
    (tmp_path / "out").mkdir()
    shutil.copy(folder / "out" / "scores.json", tmp_path / "out")
    fresh = train(sequence(tmp_path, other, ["capital"], ["plural"]))
    assert (abs(fresh["log_prob"][0] - found["log_prob"][0, :2]) > 1e-3).all()


def test_wrong_inputs_before_any_work(base, tmp_path):
    """Catches a base that is scored, or an `out` that is made, before the last task was looked at."""
    file = sequence(tmp_path, base)
    good = file.read_text()
    currency = str(tmp_path / "currency.jsonl")
    twice = tmp_path / "deeper"
    twice.mkdir()
    (twice / "plural.jsonl").write_text('{"prompt": "Two", "answer": "one"}\n')
    lora = 'method = "lora"\ntargets = ["query"]\nseed'
    for change, kind, words in (
        ((currency, "builtin:capitol"), TaskError, "builtin:capitol: no such built-in task"),
        ((currency, "nothing.csv"), TaskError, "nothing.csv: no such task file"),
        ((str(base), "nowhere/at-all/x"), CheckpointError, "no such file or folder"),
        (("seed", lora), StudyError, "has no such modules"),
        ((currency, str(twice / "plural.jsonl")), StudyError, "are both called 'plural'"),
        (("steps = 4", "steps = 0"), StudyError, "steps = 0: want at least 1"),
    ):
        assert change[0] in good
        file.write_text(good.replace(*change))
        with pytest.raises(kind, match=words) as error:
            train(file)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()
