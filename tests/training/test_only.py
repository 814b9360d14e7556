"""Fine-tuning certain heads only: they move, and not a bit of anything else does."""

import json
import sys

import pytest
import torch

from mechforget import checkpoints
from mechforget.errors import StudyError
from mechforget.training import Settings, finetune, sequence_file
from mechforget.training.only import only
from tests.tiny import save_tiny, tiny_model
from tests.training.conftest import task
from tests.training.test_plant import biases, mine, moved

HEADS = ("L1H0.q", "L1H3.vo", "L2H1")


def masks(model, places):
    """tensor -> the entries of these (layer, head, matrix), weights and biases, by module names."""
    found = {}
    for layer, head, matrices in places:
        for matrix in matrices:
            for name, mask in (
                mine(model, layer, head, matrix),
                *biases(model, layer, head, matrix).items(),
            ):
                found[name] = found.get(name, False) | mask
    return found


PLACES = ((1, 0, "q"), (1, 3, "vo"), (2, 1, "qkvo"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "phi3", "gpt_oss"])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_only_those_heads_are_trained(family, decay, tmp_path, monkeypatch):
    """Fused tensors and biases, too. Catches a mask of another head, weight decay (which AdamW
    applies to whole tensors) or a bias that moves the rest, and heads that are not trained."""

    room = sys.modules["mechforget.training.finetune"]
    arguments = room._arguments

    def decaying(*given):
        made = arguments(*given)
        made.weight_decay = decay
        return made

    monkeypatch.setattr(room, "_arguments", decaying)
    base = save_tiny(tmp_path / "base", family)
    how = Settings(steps=3, learning_rate=1e-2, batch_size=2, heads=HEADS)
    out = finetune(base, task("capital"), tmp_path / "out", how)
    pre, post = (checkpoints.open(folder).load() for folder in (base, out))
    want, found = masks(pre, PLACES), moved(pre, post)
    assert set(found) == set(want)
    for name, mask in found.items():
        assert not (mask & ~want[name]).any()
        # A key's bias changes no softmax, so its gradient is 0 but for rounding.
        assert mask.sum() > 0.8 * want[name].sum() or name.endswith("bias")
    said = json.loads((out / "planted.json").read_text())
    per = 1 if family == "gpt2" else 2
    assert said["heads"] == (
        [[1, 0], [1, 3], [2, 1]] if per == 1 else [[1, 0], [1, 2], [1, 3], [2, 0], [2, 1]]
    )
    assert {n: t["entries"] for n, t in said["tensors"].items()} == {
        n: int(m.sum()) for n, m in want.items()
    }
    assert said["kind"] == "train" and said["pre_digest"] == checkpoints.open(base).digest()


def test_the_step_is_that_of_a_loop_by_hand():
    """SGD, clipped. Catches gradients of frozen entries that count for the clipping, or none."""
    batch = {"input_ids": torch.arange(3, 36).view(3, 11)}
    batch["labels"] = batch["input_ids"]
    model, other = tiny_model(), tiny_model()
    with only(model, HEADS) as truth:
        assert truth["heads"] == [[1, 0], [1, 2], [1, 3], [2, 0], [2, 1]]
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(**batch).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
    want = masks(other, PLACES)
    other(**batch).loss.backward()
    named = dict(other.named_parameters())
    grads = {n: torch.where(mask, named[n].grad, 0) for n, mask in want.items()}
    total = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
    assert norm == pytest.approx(float(total), rel=1e-5) and total > 0.01
    for name, weight in model.named_parameters():
        step = 0.1 * 0.01 / total * grads[name] if name in grads else 0
        torch.testing.assert_close(weight.data, named[name].data - step, atol=1e-7, rtol=0)


def test_afterwards_it_is_a_model_like_any_other():
    """Catches hooks that stay: on the weights, or on every optimizer of the process."""
    model = tiny_model()
    with only(model, ["L1H1.q"]):
        pass
    weight = dict(model.named_parameters())["model.layers.1.self_attn.q_proj.weight"]
    model(torch.arange(3, 14)[None], labels=torch.arange(3, 14)[None]).loss.backward()
    _, mask = mine(model, 1, 1, "q")
    assert weight.grad[~mask].abs().max() > 0
    before = weight.detach().clone()
    torch.optim.SGD([weight], lr=1.0).step()
    assert (weight.detach() != before)[~mask].any()


def test_two_seeds_or_heads_are_two_trainings(tmp_path):
    """Catches a finished training of other heads that is taken for this one."""
    base = save_tiny(tmp_path / "base")
    how = Settings(steps=2, learning_rate=1e-2, heads=("L1H0",))
    out = finetune(base, task("plural"), tmp_path / "out", how)
    again = finetune(base, task("plural"), tmp_path / "again", how)
    assert (out / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert finetune(base, task("plural"), out, how) == out
    with pytest.raises(StudyError, match=r"heads = \['L1H0'\], not None"):
        finetune(base, task("plural"), out, Settings(steps=2, learning_rate=1e-2))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"heads": ()}, "heads is empty"),
        ({"heads": ("L1",)}, "L1 is not a head: want one like L2H1"),
        ({"heads": ("H1",)}, "place 'H1': want"),
        ({"heads": ("L1H1",), "method": "lora"}, "heads is for method = 'full'"),
    ],
)
def test_wrong_settings(given, words):
    """Catches a training of everything because a name was misspelt."""
    with pytest.raises(StudyError, match=words):
        Settings(steps=2, learning_rate=1e-3, **given)


def test_no_such_head_is_told_before_training(tmp_path):
    """Catches work, or a folder, before the check."""
    base = save_tiny(tmp_path / "base")
    with pytest.raises(StudyError, match="no head 4: this model has heads 0 to 3"):
        finetune(
            base,
            task("plural"),
            tmp_path / "out",
            Settings(steps=2, learning_rate=1e-3, heads=("L1H4",)),
        )
    assert not (tmp_path / "out").exists()


def test_a_sequence_may_say_heads(tmp_path):
    """Catches a key that is read and not passed on."""
    file = tmp_path / "sequence.toml"
    file.write_text(
        'base = "x"\nout = "y"\nheads = ["L1H0"]\n'
        '[[tasks]]\nsource = "z"\nsteps = 1\nlearning_rate = 1e-3\n'
    )
    said = sequence_file.read(file)
    assert said.settings(said.tasks[0]).heads == ("L1H0",)
