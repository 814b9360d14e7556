"""What is a pair and what is not, in words. Every difference is made on purpose, one at a time."""

import json

import pytest
import torch

from mechforget import checkpoints
from mechforget.checkpoints.differences import differences
from mechforget.errors import CheckpointError
from tests.checkpoints.conftest import edit_json, edit_tensors
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


def refused(pre, post) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoints.Pair(pre, post).check()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    return str(caught.value)


def clauses(pre, post) -> list[str]:
    return differences(checkpoints.open(pre), checkpoints.open(post))


@pytest.mark.parametrize("family", FAMILIES)
def test_other_weights_are_what_a_pair_is_for(family, tiny):
    """Would catch a false alarm in any family."""
    checkpoints.Pair(tiny(family), tiny(family, 1)).check()


def test_another_architecture(tiny):
    """Would catch llama against gpt2, and one that has the same tensors (llama and mistral)."""
    said = refused(tiny(), tiny("gpt2"))
    assert "architecture LlamaForCausalLM / GPT2LMHeadModel" in said
    assert "tensors only in the first: embed_tokens.weight" in said
    assert str(tiny()) in said and str(tiny("gpt2")) in said
    assert "architecture LlamaForCausalLM / MistralForCausalLM" in refused(tiny(), tiny("mistral"))


def test_other_shapes_and_depth(tiny, copy):
    """Would catch a width or depth that differs in the files."""
    folder = copy(tiny())

    def change(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(50, 32)
        del tensors["model.layers.2.mlp.up_proj.weight"]
        tensors["model.layers.3.mlp.up_proj.weight"] = torch.zeros(48, 32)

    edit_tensors(folder / "model.safetensors", change)
    assert clauses(tiny(), folder) == [
        "tensors only in the first: layers.2.mlp.up_proj.weight",
        "tensors only in the second: layers.3.mlp.up_proj.weight",
        "shapes: layers.0.mlp.up_proj.weight [48, 32] / [50, 32]",
    ]


def test_another_vocabulary(tiny, copy, tmp_path):
    """Would catch an embedding that was resized for new tokens, and that all differences are in
    the one line."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    model.resize_token_embeddings(401)
    model.save_pretrained(tmp_path / "resized")
    tokenizer.save_pretrained(tmp_path / "resized")
    said = refused(tiny(), tmp_path / "resized")
    assert "vocabulary 400 / 401" in said
    assert "embed_tokens.weight [400, 32] / [401, 32]" in said
    assert "tokenizer: added_tokens" in said and "probe" not in said


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("model", lambda m: swap(m["vocab"], "Ġcapital", "Ġcurrency"), "'Ġcapital', 'Ġcurrency'"),
        ("model", lambda m: m["merges"].reverse(), "tokenizer: merges"),
        ("pre_tokenizer", lambda p: p.update(add_prefix_space=True), "tokenizer: pre_tokenizer"),
        ("added_tokens", lambda a: a[0].update(content="<hole>"), "added_tokens"),
    ],
)
def test_another_tokenizer(section, change, said, tiny, copy):
    """Would catch tokenizers of the same size that give other ids: each part by itself."""
    folder = copy(tiny())
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content[section])
    file.write_text(json.dumps(content))
    assert said in refused(tiny(), folder)


def swap(vocab: dict[str, int], a: str, b: str) -> None:
    vocab[a], vocab[b] = vocab[b], vocab[a]


def test_a_bos_that_only_one_adds(tiny, copy):
    """Would catch positions shifted by one: the JSON that differs is the post-processor's."""
    folder = copy(tiny())
    tiny_tokenizer(bos=True).save_pretrained(folder)
    assert clauses(tiny(), folder) == ["tokenizer: a probe text gets other ids"]


def test_padding_and_truncation_are_no_difference(tiny, copy):
    """Would catch a false alarm after training with padding."""
    folder = copy(tiny())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = dict(direction="Right", max_length=8, strategy="LongestFirst", stride=0)
    content["padding"] = dict(
        strategy="BatchLongest",
        direction="Left",
        pad_to_multiple_of=None,
        pad_id=0,
        pad_type_id=0,
        pad_token="<pad>",
    )
    (folder / "tokenizer.json").write_text(json.dumps(content))
    edit_json(folder / "tokenizer_config.json", padding_side="left", model_max_length=64)
    checkpoints.Pair(tiny(), folder).check()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rms_norm_eps", 1e-5),
        ("rms_norm_eps", 1.01e-6),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 500000.0}),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
        ("hidden_act", "gelu"),
        ("num_attention_heads", 2),
        ("tie_word_embeddings", True),
        ("attention_bias", True),
        ("max_position_embeddings", 256),
    ],
)
def test_config_fields_that_change_the_function(field, value, tiny, copy):
    """Would catch a pair whose weights mean something else: same tensors, other function."""
    folder = copy(tiny())
    edit_json(folder / "config.json", **{field: value})
    [said] = [clause for clause in clauses(tiny(), folder) if clause.startswith("config: ")]
    assert field in said


def test_sliding_window(tiny, copy):
    """Would catch attention that sees less far in one of the two."""
    folder = copy(tiny("mistral"))
    edit_json(folder / "config.json", sliding_window=7)
    assert clauses(tiny("mistral"), folder) == ["config: sliding_window 4096 / 7"]


def test_config_fields_that_do_not(tiny, copy):
    """Would catch a refusal of pairs that are what Trainers and hubs make of one model."""
    folder = copy(tiny())
    edit_json(
        folder / "config.json",
        use_cache=False,
        attention_dropout=0.1,
        initializer_range=0.5,
        transformers_version="4.0.0",
        eos_token_id=5,
        pad_token_id=2,
        dtype="bfloat16",
        rms_norm_eps=1.0000000000001e-6,
        _name_or_path="elsewhere",
    )
    assert clauses(tiny(), folder) == []


def test_names_that_load_the_same(tiny, copy):
    """Would catch a false alarm for a tied copy that one side stores, a missing prefix, and the
    rotary buffers of old checkpoints. That they load the same is checked too."""
    folder = copy(tiny("gpt2"))

    def rename(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    edit_tensors(folder / "model.safetensors", rename)
    edit_json(folder / "config.json", architectures=["GPT2LMHeadModel"])
    checkpoints.Pair(tiny("gpt2"), folder).check()
    ids = torch.arange(9)[None]
    assert torch.equal(checkpoints.open(folder).load()(ids).logits, tiny_model("gpt2")(ids).logits)
    folder = copy(tiny())
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(folder / "model.safetensors", lambda t: t.update({buffer: torch.zeros(4)}))
    checkpoints.Pair(tiny(), folder).check()
    checkpoints.open(folder).load()


def test_an_untied_unembedding_is_compared(tiny, copy):
    """Would catch the exception for tied copies that is made for all."""
    folder = copy(tiny())
    edit_tensors(folder / "model.safetensors", lambda t: t.pop("lm_head.weight"))
    assert clauses(tiny(), folder) == ["tensors only in the first: lm_head.weight"]


def test_check_reads_no_weights(tiny, copy):
    """Would catch a check that loads: NaN weights pass it (load() refuses them)."""
    folder = copy(tiny())
    edit_tensors(folder / "model.safetensors", lambda t: t["lm_head.weight"].fill_(float("nan")))
    checkpoints.Pair(tiny(), folder).check()
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds 12,800 NaN"):
        checkpoints.open(folder).load()


def test_a_members_own_fault_is_named(tiny, copy):
    """Would catch a comparison with something that is no checkpoint."""
    folder = copy(tiny())
    edit_json(folder / "config.json", model_type="my_own", auto_map={"AutoConfig": "x.Y"})
    assert "which is never run" in refused(tiny(), folder)


def test_sequence(tiny):
    """Would catch members not compared, pairs that do not start at θ₀, or a wrong index."""
    folders = [tiny("llama", seed) for seed in range(3)]
    sequence = checkpoints.Sequence(folders)
    sequence.check()
    assert [(p.pre.path, p.post.path) for p in sequence.pairs()] == [
        (folders[0].resolve(), folders[t].resolve()) for t in (1, 2)
    ]
    assert sequence.pairs()[0].pre is sequence.checkpoints[0]
    with pytest.raises(CheckpointError, match=r"checkpoint 0 \(.*\) and checkpoint 2 \(.*gpt2"):
        checkpoints.Sequence([folders[0], folders[1], tiny("gpt2")]).check()
    with pytest.raises(CheckpointError, match="a sequence of 1 checkpoints: want at least two"):
        checkpoints.Sequence(folders[:1])
