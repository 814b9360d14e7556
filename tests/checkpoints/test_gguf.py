"""GGUF: files written here with llama.cpp's own writer and layout; oracle: the weights put in."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from mechforget import checkpoints
from mechforget.errors import CheckpointError
from tests.tiny import tiny_model, tiny_tokenizer

NAMES = {  # llama.cpp's name of each module
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    file: Path,
    model: PreTrainedModel,
    quantised: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
) -> None:
    """`quantised` modules as Q8_0, the rest as float32, `without` some."""
    config: Any = model.config
    tokenizer = tiny_tokenizer()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])  # 3: control
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        module = name.removesuffix(".weight")
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        if count := heads.get(module.rsplit(".", 1)[-1]):  # the rotary halves are interleaved
            weight = weight.view(count, 2, -1, weight.shape[1]).transpose(1, 2)
            weight = weight.reshape(-1, weight.shape[-1])
        if module.startswith("model.layers."):
            _, _, layer, module = module.split(".", 3)
            target = f"blk.{layer}.{NAMES[module]}.weight"
        else:
            target = f"{NAMES[module]}.weight"
        if module in without:
            continue
        data, kind = weight.contiguous().numpy(), None
        if module in quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            data = gguf.quants.quantize(data, kind)
        writer.add_tensor(target, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_model())
    return path


def test_float_weights_come_back_exactly(file, own_cache):
    """Would catch rows of q and k left in llama.cpp's order, a lost tensor, another config."""
    opened = checkpoints.open(file)
    assert opened.kind == "gguf" and opened.path == file.resolve()
    assert not (own_cache / "gguf").exists()  # opening converts nothing
    model, want = opened.load(), tiny_model()
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in want.named_parameters()
    }
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, want.get_parameter(name)), name
    assert "quantization_config" not in json.loads((opened.folder / "config.json").read_text())
    assert opened.tensors()["model.norm.weight"].dtype == "F32"
    text = "The capital of France is Paris."
    assert opened.tokenizer()(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]


def test_blocks_are_de_quantised(tmp_path):
    """Would catch weights kept packed, or rounded once more. Oracle: the gguf library's numbers,
    which differ from the weights by at most half a step of max|w| / 127 in each block."""
    write_gguf(tmp_path / "tiny.gguf", tiny_model(), quantised=("mlp.up_proj",))
    model, want = checkpoints.open(tmp_path).load(), tiny_model()
    for layer in range(3):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        stored, true = model.get_parameter(name).numpy(), want.get_parameter(name).detach().numpy()
        packed = gguf.quants.quantize(true, gguf.GGMLQuantizationType.Q8_0)
        unpacked = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
        np.testing.assert_array_equal(stored, unpacked)
        assert 0 < abs(stored - true).max() <= abs(true).max() / 127 * 0.51


def test_converted_once(file, own_cache, tmp_path, monkeypatch):
    """Would catch a conversion on every run; and the cache of one file used for another."""
    first = checkpoints.open(file).folder
    with monkeypatch.context() as patch:
        patch.setattr("mechforget.checkpoints.gguf.write_folder", None)
        assert checkpoints.open(file).folder == first
    other = tmp_path / "elsewhere" / "tiny.gguf"
    other.parent.mkdir()
    write_gguf(other, tiny_model(seed=1))
    assert checkpoints.open(other).folder != first
    assert len([f for f in (own_cache / "gguf").iterdir() if f.is_dir()]) == 2


def test_a_pair_with_its_own_conversion(file):
    """Would catch a GGUF that is no pair with a model trained from it."""
    opened = checkpoints.open(file)
    checkpoints.Pair(opened, opened.folder).check()
    assert opened.digest() != checkpoints.open(opened.folder).digest()


def test_silent(file, capfd):
    """Would catch the bars of the conversion."""
    checkpoints.open(file).load()
    assert capfd.readouterr() == ("", "")


def test_a_folder_must_hold_one(file, tmp_path):
    """Would catch a guess among several; and a GGUF that is preferred to safetensors beside it."""
    assert checkpoints.open(tmp_path).path == file.resolve()
    (tmp_path / "second.gguf").write_bytes(file.read_bytes())
    with pytest.raises(
        CheckpointError, match=r"2 GGUF files: give one of second\.gguf, tiny\.gguf"
    ):
        checkpoints.open(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    assert checkpoints.open(tmp_path).kind == "folder"


def test_damaged_files_are_refused(file, tmp_path):
    """Would catch a truncated download that converts into a half model, or a traceback: cut in the
    magic, in the metadata, in the tensor list and in the data."""
    whole = file.read_bytes()
    data = len(whole) - sum(p.nbytes for p in tiny_model().parameters())
    for size in (0, 3):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is no GGUF file"):
            checkpoints.open(file)
    for size in (4, 9, 30, 200, 2000, data - 500, data + 50, len(whole) - 100):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is truncated or damaged") as caught:
            checkpoints.open(file).load()
        assert "\n" not in str(caught.value)
    part = tmp_path / "big-00001-of-00002.gguf"
    part.write_bytes(whole)
    with pytest.raises(CheckpointError, match="one part of a split GGUF: join the parts"):
        checkpoints.open(part)


def test_a_lost_tensor_is_refused(tmp_path):
    """Would catch random numbers in its place, saved into the cache for good."""
    write_gguf(tmp_path / "tiny.gguf", tiny_model(), without=("mlp.up_proj",))
    with pytest.raises(CheckpointError, match=r"3 missing, e\.g\. model\.layers\.0\.mlp\.up_proj"):
        checkpoints.open(tmp_path).load()


def test_an_architecture_that_transformers_cannot_read(tmp_path, own_cache):
    """Would catch a traceback, and a cache folder left for it."""
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "my_own")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="transformers cannot read this GGUF"):
        checkpoints.open(tmp_path).load()
    assert not [f for f in (own_cache / "gguf").iterdir() if f.suffix != ".lock"]
