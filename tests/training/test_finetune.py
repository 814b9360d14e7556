"""One training: against a loop by hand, repeatable to the bit, silent, and whole or not there."""

import dataclasses
import errno
import hashlib
import json
import random
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mechforget import checkpoints
from mechforget.errors import CheckpointError, StudyError, TaskError
from mechforget.tasks import Task
from mechforget.training import Settings, finetune
from mechforget.training.score import device
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.training.conftest import answer_log_probs, task

FOUR = Settings(steps=4, learning_rate=1e-3, batch_size=2, seed=3)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    return finetune(base, task("capital"), tmp_path_factory.mktemp("trained") / "out", FOUR)


def record(folder):
    return json.loads((folder / "training.json").read_text())


def test_the_losses_are_those_of_a_loop_by_hand(base, tmp_path):
    """AdamW (no decay), gradients clipped at norm 1, learning rate up over `warmup_steps` and down
    linearly to 0, mean over the answer tokens of the batch. Catches loss on the prompt, a mean over
    rows (answers have 1 to 4 tokens), another optimiser, schedule or clip, and a learning rate,
    step count or batch size that is not passed on."""
    rows = pd.concat([task("capital").rows, task("plural").rows])
    both = Task("both", rows, "x")
    how = Settings(steps=6, learning_rate=3e-3, batch_size=100, warmup_steps=2)
    out = finetune(base, both, tmp_path / "out", how)

    model, tokenizer = tiny_model(), tiny_tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.0)
    by_hand = []
    for rate in (0, 0.5, 1, 0.75, 0.5, 0.25):
        optimizer.param_groups[0]["lr"] = 3e-3 * rate
        losses = []
        for prompt, answer in both.rows.values:
            start = tokenizer(prompt)["input_ids"]
            end = tokenizer(" " + answer, add_special_tokens=False)["input_ids"]
            log_p = model(torch.tensor([start + end])).logits[0].log_softmax(-1)
            losses += [-log_p[len(start) - 1 + k, token] for k, token in enumerate(end)]
        loss = torch.stack(losses).mean()
        by_hand.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert norm > 1  # the clip is seen
        optimizer.step()

    found = record(out)["loss"]
    assert found[0] == pytest.approx(found[1])  # the first step's learning rate is 0
    np.testing.assert_allclose(found, by_hand, rtol=2e-3)  # Adam divides by small gradients
    np.testing.assert_allclose(found[:2], by_hand[:2], rtol=1e-5)  # nothing is divided yet


def test_the_answers_are_learned_and_saved(base, trained, tmp_path):
    """Catches a training that moves the weights the wrong way, and one that saves others than the
    trained ones."""
    out = finetune(base, task("capital"), tmp_path / "out", Settings(steps=30, learning_rate=3e-3))
    loss = record(out)["loss"]
    assert len(loss) == 30 and loss[-1] < loss[0] / 3
    tokenizer = tiny_tokenizer()
    before, after = checkpoints.open(base).load(), checkpoints.open(out).load()
    for prompt, answer in task("capital").rows.values:
        learned, _ = answer_log_probs(after, tokenizer, prompt, answer)
        assert sum(learned) > sum(answer_log_probs(before, tokenizer, prompt, answer)[0])


def test_a_checkpoint_that_pairs_with_its_base(base, trained):
    """Catches a lost tokenizer, weights that are not float32, a config that training changed, and
    optimizer or Trainer files left behind."""
    checkpoints.Pair(base, trained).check()
    names = {file.name for file in trained.iterdir()}
    assert names == {file.name for file in base.iterdir()} | {"training.json"}
    assert {tensor.dtype for tensor in load_file(trained / "model.safetensors").values()} == {
        torch.float32
    }
    ours, theirs = (json.loads((f / "config.json").read_text()) for f in (base, trained))
    assert ours == theirs
    assert [file.name for file in trained.parent.iterdir()] == ["out"]


def test_the_record(base, trained):
    """Catches a record with which the training could not be made again."""
    said = record(trained)
    weights = (base / "model.safetensors").read_bytes()
    assert said["base"] == str(base)
    assert said["base_digest"] == hashlib.sha256(weights).hexdigest()
    assert said["settings"] == dataclasses.asdict(FOUR)
    assert said["task"]["source"] == "capital.jsonl" and said["task"]["prompts"] == 5
    assert torch.__version__.startswith(said["versions"]["torch"].partition("+")[0])
    assert set(said["versions"]) >= {"mechforget", "transformers", "peft"}
    assert len(said["loss"]) == 4 and said["device"] == device() and said["seconds"] >= 0


def test_the_seed_decides_every_bit(tmp_path):
    """GPT-2 has dropout, and three of five rows are left out of each epoch's first batch. Catches
    an order or dropout that is not seeded, and a seed that is not used."""
    gpt2 = save_tiny(tmp_path / "gpt2", "gpt2", 0)
    weights = {}
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        torch.manual_seed(len(weights))  # whatever came before must not matter
        how = Settings(steps=3, learning_rate=1e-3, batch_size=2, seed=seed)
        out = finetune(gpt2, task("capital"), tmp_path / name, how)
        weights[name] = (out / "model.safetensors").read_bytes()
    assert weights["a"] == weights["again"] != weights["b"]


def test_nothing_is_left_changed(base, tmp_path, monkeypatch):
    """Catches a training after which torch is slower, or other random numbers are drawn."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "mine")
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    import os

    def state():
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.random.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            random.getstate(),
            dict(os.environ),
        )

    before = state()
    finetune(base, task("plural"), tmp_path / "out", FOUR)
    assert state() == before


def test_silent_but_on_a_terminal(base, tmp_path, capfd):
    """Catches Trainer's tables and bars, and third-party warnings, in a log or a pipe."""
    finetune(base, task("plural"), tmp_path / "out", FOUR)
    assert capfd.readouterr() == ("", "")


def test_what_is_there_already(base, trained, tmp_path):
    """Catches a finished training that is made twice, and one that is taken for another."""
    stamp = (trained / "model.safetensors").stat().st_mtime_ns
    assert finetune(base, task("capital"), trained, FOUR) == trained
    assert (trained / "model.safetensors").stat().st_mtime_ns == stamp

    rows = task("capital").rows.copy()
    rows.loc[0, "answer"] = "Lyon"
    other = save_tiny(tmp_path / "other", "llama", 1)
    faster = dataclasses.replace(FOUR, learning_rate=2e-3, seed=4)
    for args, words in (
        ((base, task("capital"), faster), "learning_rate = 0.001, not 0.002; seed = 3, not 4"),
        ((base, task("plural"), FOUR), "trained with capital.jsonl, not plural.jsonl"),
        ((base, Task("capital", rows, "capital.jsonl"), FOUR), "trained with other rows"),
        ((other, task("capital"), FOUR), "a base with other weights"),
    ):
        with pytest.raises(StudyError) as error:
            finetune(*args[:2], trained, args[2])
        assert words in str(error.value) and "choose another out" in str(error.value)
    (tmp_path / "mine").mkdir()
    with pytest.raises(StudyError, match=r"mine exists and has no training\.json"):
        finetune(base, task("capital"), tmp_path / "mine", FOUR)
    broken = shutil.copytree(trained, tmp_path / "broken")
    (broken / "training.json").write_text("{")
    with pytest.raises(StudyError, match=r"is damaged .*: remove .*, to train it again"):
        finetune(base, task("capital"), broken, FOUR)


def test_a_training_that_diverges_leaves_nothing(base, tmp_path):
    """Catches NaN weights that are saved, a NaN that Trainer hides, and a half-made folder."""
    how = Settings(steps=5, learning_rate=1e30, seed=0)
    with pytest.raises(StudyError, match=r"diverged: .*: lower learning_rate") as error:
        finetune(base, task("plural"), tmp_path / "out", how)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_last_step_that_diverges_is_seen(base, tmp_path):
    """The loss of a step is from before its update. Catches a check of losses alone."""
    with pytest.raises(StudyError, match="not finite after the last step"):
        finetune(base, task("plural"), tmp_path / "out", Settings(steps=1, learning_rate=1e39))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(base, tmp_path):
    """By a limit on file sizes. Catches safetensors' own error, which no caller knows as the
    disk's, and a folder with a torn file."""
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # the model has 160 kB
    try:
        with pytest.raises(OSError, match="File too large") as error:
            finetune(base, task("plural"), tmp_path / "out", FOUR)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_refused_before_weights_are_read(base, tmp_path):
    """Catches work, or a folder, before the check of what came."""
    with pytest.raises(CheckpointError, match="no such file or folder"):
        finetune(tmp_path / "nothing", task("plural"), tmp_path / "out", FOUR)
    long = Task("long", pd.DataFrame({"prompt": ["!" * 200], "answer": ["b"]}), "long.csv")
    truncated = shutil.copytree(base, tmp_path / "truncated")
    with pytest.raises(TaskError, match="takes 128"):
        finetune(truncated, long, tmp_path / "out", FOUR)
    assert not (tmp_path / "out").exists()


def test_what_a_killed_training_left_is_replaced(base, tmp_path):
    """Catches a rest that gets into the new folder, or stops it."""
    rest = tmp_path / ".out.partial"
    rest.mkdir()
    (rest / "model.safetensors").write_bytes(b"half")
    (rest / "junk").write_bytes(b"")
    out = finetune(base, task("plural"), tmp_path / "out", FOUR)
    assert not rest.exists() and not (out / "junk").exists()
    checkpoints.open(out).load()
