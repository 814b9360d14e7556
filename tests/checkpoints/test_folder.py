"""Folders that are refused, by their words, and the ways out that the words promise."""

import json
import shlex

import pytest
import torch
from safetensors.torch import load_file

from mechforget import checkpoints
from mechforget.errors import CheckpointError
from tests.checkpoints.conftest import edit_json
from tests.tiny import tiny_model


def refused(ref) -> str:
    """What opening (with its config) says: one line."""
    with pytest.raises(CheckpointError) as caught:
        _ = checkpoints.open(ref).config
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_empty_and_unrelated_folders(tmp_path):
    """Would catch an empty folder that opens, or an error that does not say what is wanted."""
    assert "holds no checkpoint (0 entries): want config.json and" in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    assert "(1 entries)" in refused(tmp_path)
    assert "is a file; want its folder" in refused(tmp_path / "notes.txt")


def test_the_folder_above_names_what_is_below(tmp_path):
    """Would catch a user left alone with a Trainer's output folder."""
    for name in ("checkpoint-100", "checkpoint-200"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert "give one of checkpoint-100, checkpoint-200" in refused(tmp_path)


def test_weights_without_config_and_config_without_weights(tiny, copy):
    """Would catch half a checkpoint."""
    folder = copy(tiny())
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        checkpoints.open(folder)
    folder = copy(tiny("llama", 1))
    (folder / "model.safetensors").unlink()
    assert "holds no checkpoint" in refused(folder)


def test_truncated_weights_are_refused_by_open(tiny, copy):
    """Would catch a half-copied file that fails only when it is loaded."""
    file = copy(tiny()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"truncated: .* bytes where its header wants"):
        checkpoints.open(file.parent)


def follow(message: str) -> None:
    """Does what the message advises, as a shell would read it."""
    program, option, code = shlex.split(message[message.index("python -c") :])
    assert (program, option) == ("python", "-c")
    exec(code, {})


def test_a_pickle_is_refused_and_the_conversion_works(tiny, copy):
    """Would catch a pickle that is read, and advice that fails: the printed command is run."""
    folder = copy(tiny("gpt2"))  # tied: one storage under two names, which save_file() refuses
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("gpt2").state_dict(), folder / "pytorch_model.bin")
    (folder / "optimizer.pt").write_bytes(b"")
    message = refused(folder)
    assert "pytorch_model.bin is a pickle, which is never read" in message
    follow(message)
    model, want = checkpoints.open(folder).load(), tiny_model("gpt2")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), want.parameters(), strict=True)
    )


def test_a_pickled_adapter_too(tiny, adapter, copy):
    """Would catch the same for adapters, whose pickle peft would read."""
    folder = copy(adapter)
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    message = refused(folder)
    assert "adapter_model.bin is a pickle" in message
    follow(message)
    checkpoints.open(folder).check()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.ckpt"])
def test_a_pickle_file_by_name(name, tmp_path):
    """Would catch a pickle that is given directly."""
    (tmp_path / name).write_bytes(b"\x80\x04.")
    assert f"{name} is a pickle" in refused(tmp_path / name)
    assert f"{name} is a pickle" in refused(tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "my_own", "auto_map": {"AutoConfig": "m.C"}}, "which is never run"),
        ({"model_type": "my_own"}, "transformers does not know model type 'my_own'"),
        ({"model_type": None}, "transformers does not know model type None"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantised (gptq)"),
        ({"num_hidden_layers": "three"}, "StrictDataclassFieldValidationError"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "want a causal language model"),
        ({"model_type": "t5", "architectures": ["T5Model"]}, "t5 (T5Model); want a causal"),
    ],
)
def test_configs_that_are_refused(fields, said, tiny, copy):
    """Would catch code from a checkpoint that is run, a classifier's missing unembedding, or a
    traceback for a broken field."""
    folder = copy(tiny())
    edit_json(folder / "config.json", **fields)
    assert said in refused(folder)


def test_broken_json(tiny, copy):
    """Would catch a traceback for a truncated config."""
    config = copy(tiny()) / "config.json"
    config.write_text(config.read_text()[:-20])
    assert "is not JSON" in refused(config.parent)
    config.write_text(json.dumps([1]))
    assert "holds no JSON object" in refused(config.parent)


def test_a_native_class_with_auto_map_opens_without_it(tiny, copy):
    """Would catch a refusal of models that transformers has itself, and the checkpoint's own code
    being run: the module here would fail."""
    folder = copy(tiny())
    (folder / "own.py").write_text("raise SystemExit('code from the checkpoint was run')")
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "own.Model"})
    opened = checkpoints.open(folder)
    opened.check()
    assert type(opened.load()).__module__.startswith("transformers.")


def test_a_tokenizer_that_brings_its_own_code_is_refused(tiny, copy):
    """Would catch that code being run, and a way out that would have it run."""
    folder = copy(tiny())
    (folder / "own.py").write_text("raise SystemExit('code from the checkpoint was run')")
    auto = {"AutoTokenizer": ["own.Slow", "own.Fast"]}
    edit_json(folder / "tokenizer_config.json", auto_map=auto, tokenizer_class="Fast")
    with pytest.raises(CheckpointError, match=r"its tokenizer needs code .* never run") as caught:
        checkpoints.open(folder).tokenizer()
    assert "trust_remote_code" not in str(caught.value)
