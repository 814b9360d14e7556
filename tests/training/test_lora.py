"""LoRA: an adapter that opens like a checkpoint, and is trained on when the next task comes."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mechforget import checkpoints
from mechforget.checkpoints import Checkpoint
from mechforget.errors import StudyError
from mechforget.training import Settings, finetune, lora
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.training.conftest import answer_log_probs, task

HOW = Settings(steps=6, learning_rate=1e-2, method="lora", rank=2, targets=("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return finetune(base, task("capital"), tmp_path_factory.mktemp("lora") / "a", HOW)


def settings_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def test_it_opens_as_a_checkpoint_of_its_base(base, adapter):
    """Catches an adapter that names no base or a relative one, and one without tokenizer."""
    opened = checkpoints.open(adapter)
    assert opened.kind == "adapter" and opened.base is not None
    assert opened.base.path == base.resolve()
    checkpoints.Pair(base, adapter).check()
    assert (adapter / "tokenizer.json").is_file()
    said = settings_of(adapter)
    assert Path(said["base_model_name_or_path"]).is_absolute()
    assert (said["r"], said["lora_alpha"]) == (2, 4)  # alpha: twice the rank, by default
    assert said["target_modules"] == ["down_proj", "q_proj"]  # sorted: the digest is repeatable


def test_what_was_trained_is_what_opens(base, adapter):
    """peft's own sum against ours; only the targets moved, by a matrix of the rank. Catches lost
    weights, a base that was trained too, and a rank or targets that are not passed on."""
    before, after = tiny_model(), checkpoints.open(adapter).load()
    with_peft = PeftModel.from_pretrained(tiny_model(), adapter).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, with_peft(ids).logits, rtol=0, atol=1e-4)
    for (name, ours), theirs in zip(before.named_parameters(), after.parameters(), strict=True):
        change = (theirs - ours).detach()
        if "q_proj" in name or "down_proj" in name:
            # float32 sums leave 1e-6 beside the two real directions
            assert torch.linalg.matrix_rank(change.double(), atol=1e-4) == 2
        else:
            assert not change.any()


def test_the_first_loss_is_the_base_and_it_falls(base, adapter):
    """LoRA starts at no change. Catches a start elsewhere, and a training that does not learn."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    losses = [
        -x
        for p, a in task("capital").rows.values
        for x in answer_log_probs(model, tokenizer, p, a)[0]
    ]
    found = json.loads((adapter / "training.json").read_text())["loss"]
    assert found[0] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found[-1] < found[0] - 0.1


def test_every_linear_layer_by_default(base, tmp_path):
    """Catches a default that leaves out the MLP, or takes in the unembedding."""
    out = finetune(
        base, task("plural"), tmp_path / "o", Settings(steps=1, learning_rate=1e-3, method="lora")
    )
    said = settings_of(out)
    modules = ("q", "k", "v", "o", "gate", "up", "down")
    assert set(said["target_modules"]) == {f"{name}_proj" for name in modules}
    assert said["r"] == 8 and said["lora_alpha"] == 16


def test_the_seed_decides_every_bit(base, adapter, tmp_path):
    """Catches matrices that start from an unseeded draw."""
    torch.manual_seed(99)
    again = finetune(base, task("capital"), tmp_path / "again", HOW)
    other = finetune(base, task("capital"), tmp_path / "other", dataclasses.replace(HOW, seed=1))
    first, second, third = (
        (folder / "adapter_model.safetensors").read_bytes() for folder in (adapter, again, other)
    )
    assert first == second != third
    assert checkpoints.open(adapter).digest() == checkpoints.open(again).digest()


def test_the_next_task_trains_the_same_adapter_on(base, adapter, tmp_path):
    """Catches an adapter on an adapter (which cannot be opened), and one that starts anew."""
    how = dataclasses.replace(HOW, steps=1, learning_rate=1e-6)
    out = finetune(adapter, task("plural"), tmp_path / "b", how)
    opened = checkpoints.open(out)
    assert opened.base is not None and opened.base.path == base.resolve()
    before, after = (load_file(f / "adapter_model.safetensors") for f in (adapter, out))
    assert before.keys() == after.keys()
    for name in before:  # one step of Adam moves each weight by the learning rate at most
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1.1e-6)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert settings_of(out)["base_model_name_or_path"] == str(base.resolve())
    free = Settings(steps=1, learning_rate=1e-6, method="lora")  # the adapter's own rank
    assert settings_of(finetune(adapter, task("plural"), tmp_path / "c", free))["r"] == 2


def test_all_of_an_adapted_model_can_be_trained(base, adapter, tmp_path):
    """Catches full training that loses the adapter, or saves another."""
    how = Settings(steps=1, learning_rate=1e-6)
    out = finetune(adapter, task("plural"), tmp_path / "whole", how)
    opened = checkpoints.open(out)
    assert opened.kind == "folder"
    for ours, theirs in zip(
        checkpoints.open(adapter).load().parameters(), opened.load().parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": ("query",)}, "has no such modules: its linear ones are down_proj, gate_proj"),
        ({"rank": 4}, "rank = 4: the adapter"),
        ({"alpha": 3}, "alpha = 3: the adapter"),
        ({"targets": ("q_proj",)}, "targets = ('q_proj',): the adapter"),
    ],
)
def test_refused_before_any_work(base, adapter, tmp_path, change, words):
    """Catches targets that match nothing, and settings that an adapter trained on ignores."""
    start = base if "modules" in words else adapter
    with pytest.raises(StudyError) as error:
        finetune(start, task("plural"), tmp_path / "out", dataclasses.replace(HOW, **change))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_gpt2_has_other_modules(tmp_path):
    """Conv1D layers, and no `q_proj`. Catches a default or a message for Llamas only."""
    gpt2 = save_tiny(tmp_path / "gpt2", "gpt2")
    out = finetune(
        gpt2, task("plural"), tmp_path / "o", Settings(steps=1, learning_rate=1e-3, method="lora")
    )
    checkpoints.Pair(gpt2, out).check()
    checkpoints.open(out).load()
    with pytest.raises(StudyError, match="linear ones are c_attn, c_fc, c_proj"):
        finetune(gpt2, task("plural"), tmp_path / "x", HOW)


def test_a_base_from_the_hub_keeps_its_name():
    """Catches a path into one machine's cache in an adapter, and a commit that can move on."""
    path = Path("/cache/models--org--name/snapshots/0a1b2c")
    assert lora._name(Checkpoint("org/name@main", "hub", path)) == ("org/name", "0a1b2c")
    assert lora._name(Checkpoint("here", "folder", Path("/a/b"))) == ("/a/b", None)
