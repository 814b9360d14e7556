"""open() and load(): each kind is recognised, and what comes out is exactly what was stored."""

import hashlib
import shutil
import subprocess
import sys
from logging import WARNING, Handler, LogRecord
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mechforget import checkpoints
from mechforget.checkpoints import Pair
from mechforget.errors import CheckpointError
from tests.checkpoints.conftest import edit_json, edit_tensors
from tests.tiny import FAMILIES, save_tiny, tiny_model, tiny_tokenizer

IDS = torch.arange(3, 20)[None]


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_exactly_what_was_saved(family, tiny):
    """Would catch random, re-ordered or cast weights in any family, experts included. Oracle: the
    model that was saved."""
    with torch.no_grad():
        want = tiny_model(family)(IDS).logits
        opened = checkpoints.open(tiny(family))
        got = opened.load()
    assert opened.kind == "folder" and opened.config.model_type == family
    assert torch.equal(got(IDS).logits, want)
    assert not got.training and not any(p.requires_grad for p in got.parameters())
    assert got.config._attn_implementation == "eager"
    assert {p.dtype for p in got.parameters()} == {torch.float32}


def test_dtype_and_attention_are_what_was_asked_for(tiny):
    """Would catch an argument that is taken and ignored, and one load that changes the next."""
    opened = checkpoints.open(tiny())
    half = opened.load(dtype=torch.bfloat16, attn_implementation="sdpa")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.config._attn_implementation == "sdpa"
    assert opened.load(dtype="float64").dtype == torch.float64
    assert opened.load().config._attn_implementation == "eager"


def test_sharded_loads_the_same(tmp_path):
    """Would catch a shard that is not loaded."""
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    opened = checkpoints.open(tmp_path)
    assert torch.equal(opened.load()(IDS).logits, model(IDS).logits)
    assert set(opened.tensors()) == set(model.state_dict())
    name = "model.layers.2.mlp.up_proj.weight"
    assert torch.equal(opened.read(name), model.state_dict()[name])
    with pytest.raises(CheckpointError, match="stores no tensor 'x'"):
        opened.read("x")


def test_a_trainers_folder_opens_and_its_state_is_never_read(tiny, copy):
    """Would catch a pickle that is opened (its bytes here would fail, or run code), or a
    subfolder that is taken for the model."""
    folder = copy(tiny())
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(b"not to be read")
        (folder / name).chmod(0)
    (folder / "trainer_state.json").write_text("{")
    (folder / "checkpoint-123").mkdir()
    shutil.copy(tiny(seed=1) / "model.safetensors", folder / "checkpoint-123")
    shutil.copy(folder / "config.json", folder / "checkpoint-123")
    (folder / "checkpoint-123" / "optimizer.pt").write_bytes(b"no")
    opened = checkpoints.open(folder)
    opened.check()
    assert torch.equal(opened.load()(IDS).logits, tiny_model()(IDS).logits)
    inner = checkpoints.open(folder / "checkpoint-123")
    assert torch.equal(inner.load()(IDS).logits, tiny_model(seed=1)(IDS).logits)
    want = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert opened.digest() == want != inner.digest()


def test_tied_and_absent_unembedding_is_fine(tmp_path):
    """Would catch a refusal of every tied model; and an untied one whose unembedding is lost."""
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded: Any = checkpoints.open(tmp_path).load()
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    edit_json(tmp_path / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"1 missing, e\.g\. lm_head\.weight"):
        checkpoints.open(tmp_path).load()


def test_weights_that_are_not_the_models_are_refused(tiny, copy):
    """Would catch what transformers does with a warning: random weights where some are missing."""
    folder = copy(tiny())

    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.9.extra"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(5)

    edit_tensors(folder / "model.safetensors", change)
    with pytest.raises(CheckpointError) as refused:
        checkpoints.open(folder).load()
    for part in (
        "1 missing, e.g. model.layers.1.mlp.up_proj.weight",
        "1 unexpected, e.g. model.layers.9.extra",
        "1 of another shape, e.g. model.norm.weight",
    ):
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_lost_expert_is_refused(tiny, copy):
    """Would catch a mixture of experts that is stacked from fewer than it needs."""
    folder = copy(tiny("mixtral"))
    lost = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.pop(lost))
    with pytest.raises(CheckpointError, match="cannot be put into the model"):
        checkpoints.open(folder).load()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_weights_are_named(value, tiny, copy):
    """Would catch a diverged model that is compared all the same, each kind and one value only."""
    folder = copy(tiny())
    name = "model.layers.2.self_attn.o_proj.weight"
    edit_tensors(folder / "model.safetensors", lambda t: t[name][3].fill_(value))
    opened = checkpoints.open(folder)
    with pytest.raises(CheckpointError, match=f"{name} holds 32 NaN or infinite values of 1,024"):
        opened.load()


def test_overflow_of_the_asked_dtype_is_said(tiny, copy):
    """Would catch float16 infinities that the file does not hold."""
    folder = copy(tiny())
    edit_tensors(folder / "model.safetensors", lambda t: t["model.norm.weight"].fill_(1e6))
    checkpoints.open(folder).load()
    with pytest.raises(CheckpointError, match=r"as torch\.float16"):
        checkpoints.open(folder).load(dtype="float16")


def test_tokenizer(tiny, copy):
    """Would catch another tokenizer, a slow or empty one, or a guess where there is none."""
    text = "The capital of France is Paris."
    opened = checkpoints.open(tiny())
    assert opened.tokenizer()(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert opened.tokenizer().is_fast and opened.tokenizer() is opened.tokenizer()
    folder = copy(tiny())
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer: copy tokenizer\.json"):
        checkpoints.open(folder).tokenizer()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="its tokenizer:"):
        checkpoints.open(folder).tokenizer()


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny, copy):
    """Would catch an index error deep in the first forward; and a refusal for a special token
    that was added past the last row and that no text gives."""
    folder = copy(tiny())
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<never used>"])
    tokenizer.save_pretrained(folder)
    checkpoints.open(folder).check()
    edit_json(folder / "config.json", vocab_size=390)
    with pytest.raises(CheckpointError, match="ids up to 399, but its embedding has 390 rows"):
        checkpoints.open(folder).check()


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("/no/such/folder", "no such file or folder"),
        ("./no/such", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        ("", "no such file or folder"),
    ],
)
def test_a_missing_path(ref, said, tmp_path, monkeypatch):
    """Would catch a traceback, or a question to the hub about what can only be a path."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        checkpoints.open(ref)


def test_home_and_links_are_resolved(tiny, tmp_path, monkeypatch):
    """Would catch "~/model" that is looked for in the current folder, or two names of one model."""
    (tmp_path / "link").symlink_to(tiny())
    assert checkpoints.open(tmp_path / "link").path == tiny().resolve()
    monkeypatch.setenv("HOME", str(tiny().parent))
    opened = checkpoints.open(f"~/{tiny().name}")
    assert opened.path == tiny().resolve() and opened.ref.startswith("~")
    with pytest.raises(CheckpointError, match="no revision 'main'"):
        checkpoints.open(tiny(), revision="main")
    assert checkpoints.open(opened) is opened


def test_opening_is_light(tiny):
    """Would catch an import of torch or transformers by `import mechforget.checkpoints` or by
    open(); the last line proves that the check can fail."""
    heavy = "{'torch', 'transformers', 'peft', 'pandas'} & set(sys.modules)"
    code = (
        f"import sys; from mechforget import checkpoints as c; assert not {heavy}; "
        f"one = c.open({str(tiny())!r}); one.digest(); one.tensors(); assert not {heavy}; "
        f"one.read('model.norm.weight'); assert {heavy}"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_loading_says_nothing(tiny, copy, capfd, recwarn):
    """Would catch third-party bars, logs and warnings, and settings left behind."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    folder = copy(tiny())
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.pop("model.norm.weight"))
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logs: list[LogRecord] = []
    handler = Handler()
    handler.handle = lambda record: not logs.append(record)
    logging.add_handler(handler)
    logging.set_verbosity(WARNING)
    mixture = tiny("mixtral")  # made here, it may show a bar of its own
    capfd.readouterr()
    try:
        checkpoints.open(mixture).load()
        with pytest.raises(CheckpointError):
            checkpoints.open(folder).load()
        assert capfd.readouterr() == ("", "") and not recwarn.list and not logs
        assert logging.get_verbosity() == WARNING
        assert logging.is_progress_bar_enabled() == bars
        AutoModelForCausalLM.from_pretrained(folder)
        assert logs and "Loading weights" in capfd.readouterr().err  # there was what to silence
    finally:
        logging.set_verbosity(level)
        logging.remove_handler(handler)


def test_a_client_of_a_server_needs_no_weights(tmp_path):
    """Catches a laptop that must hold 800 GB to ask a server; and weights that are missing where
    they are wanted."""
    folders = [save_tiny(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    for path in folders:
        (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        Pair(*folders)
    pair = Pair(*folders, weights=False)
    pair.check()
    assert pair.pre.config.num_hidden_layers == 3 and pair.pre.tokenizer().vocab_size > 100
    assert len(pair.pre.digest()) == 64 and not pair.pre.has_weights
    (folders[0] / "config.json").unlink()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        Pair(*folders, weights=False)
