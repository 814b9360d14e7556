"""Base + LoRA. Oracle: the linear algebra of LoRA, W + (alpha / r) B A, by hand."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from mechforget import checkpoints
from mechforget.errors import CheckpointError
from tests.checkpoints.conftest import edit_json, edit_tensors
from tests.tiny import tiny_model, tiny_tokenizer


def test_merged_weights_are_base_plus_scaled_product(tiny, adapter):
    """Would catch an adapter that is left out, unscaled, added twice, or on the wrong matrix."""
    opened = checkpoints.open(adapter)
    assert opened.kind == "adapter" and opened.base is not None
    assert opened.base.path == tiny().resolve()
    settings = json.loads((adapter / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    low_rank = load_file(adapter / "adapter_model.safetensors")
    model = opened.load()
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    changed = 0
    base = tiny_model().state_dict()
    for name, weight in model.state_dict().items():
        want = base[name]
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in low_rank:
            want = want + scale * (
                low_rank[f"{stem}.lora_B.weight"] @ low_rank[f"{stem}.lora_A.weight"]
            )
            changed += 1
        torch.testing.assert_close(weight, want, rtol=1e-6, atol=1e-5)
    assert changed == 6  # q and v of 3 layers


def test_a_pair_of_base_and_adapter(tiny, adapter):
    """Would catch a refusal of the commonest pair; shapes and tokenizer are the base's."""
    pair = checkpoints.Pair(tiny(), adapter)
    pair.check()
    assert pair.post.tensors() == pair.pre.tensors()
    assert pair.post.config.to_dict() == pair.pre.config.to_dict()
    with pytest.raises(CheckpointError, match="cannot be read one by one"):
        pair.post.read("model.norm.weight")


def test_digest_covers_base_scale_and_weights(tiny, adapter, copy):
    """Would catch two adapters with one digest."""
    seen = {checkpoints.open(adapter).digest(), checkpoints.open(tiny()).digest()}
    folder = copy(adapter)
    assert checkpoints.open(folder).digest() in seen
    edit_json(folder / "adapter_config.json", lora_alpha=99)
    seen.add(checkpoints.open(folder).digest())
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t[min(t)].fill_(0))
    seen.add(checkpoints.open(folder).digest())
    base = copy(tiny())
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(base))
    seen.add(checkpoints.open(folder).digest())
    edit_tensors(base / "model.safetensors", lambda t: t["model.norm.weight"].fill_(0))
    seen.add(checkpoints.open(folder).digest())
    assert len(seen) == 6


def test_another_base_is_refused_before_weights_are_read(tiny, adapter, copy, monkeypatch):
    """Would catch what peft does in silence: layers without an adapter stay as they are, and
    adapters without a layer are dropped. Loading is forbidden here, so the refusal is early."""
    monkeypatch.setattr("mechforget.checkpoints.folder.load", None)
    folder = copy(adapter)

    def based_on(base) -> str:
        edit_json(folder / "adapter_config.json", base_model_name_or_path=str(base))
        messages = []
        opened = checkpoints.open(folder)
        for refuse in (opened.check, checkpoints.Pair(base, opened).check, opened.load):
            with pytest.raises(CheckpointError) as caught:
                refuse()
            messages.append(str(caught.value))
        assert len(set(messages)) == 1 and "\n" not in messages[0]
        return messages[0]

    assert "Target modules" in based_on(tiny("gpt2"))
    deeper = copy(tiny())
    edit_json(deeper / "config.json", num_hidden_layers=4)
    said = based_on(deeper)
    assert "4 tensors differ" in said and "layers.3" in said and "absent in the adapter" in said
    edit_json(deeper / "config.json", num_hidden_layers=2)
    assert "absent on the base" in based_on(deeper)
    edit_json(deeper / "config.json", num_hidden_layers=3, hidden_size=64)
    assert "[4, 32] in the adapter, [4, 64] on the base" in based_on(deeper)


@pytest.mark.parametrize(
    "settings",
    [
        dict(use_rslora=True, target_modules=["q_proj"]),
        dict(use_dora=True, target_modules=["o_proj"]),
        dict(target_modules="all-linear", modules_to_save=["lm_head"]),
        dict(target_modules=["embed_tokens", "q_proj"]),
        dict(
            target_modules=["q_proj"],
            bias="lora_only",
            rank_pattern={"layers.1.self_attn.q_proj": 2},
        ),
    ],
)
def test_variants_of_lora_load_as_trained(settings, tiny, tmp_path):
    """Would catch a check that refuses what peft itself saves, and a merge that forgets a part.
    Oracle: the unmerged model that was saved."""
    torch.manual_seed(1)
    base = tiny_model()
    base.config.name_or_path = base.name_or_path = str(tiny())
    model = get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
        model.save_pretrained(tmp_path)
        want = model(torch.arange(3, 20)[None]).logits
    opened = checkpoints.open(tmp_path)
    opened.check()
    assert not any(p.requires_grad for p in opened.load().parameters())
    got = opened.load()(torch.arange(3, 20)[None]).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_its_own_tokenizer_comes_first(adapter, copy):
    """Would catch a tokenizer saved beside an adapter that is ignored."""
    folder = copy(adapter)
    tiny_tokenizer(bos=True).save_pretrained(folder)
    assert checkpoints.open(folder).tokenizer()("Rome")["input_ids"][0] == 1
    assert checkpoints.open(adapter).tokenizer()("Rome")["input_ids"][0] != 1


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (None, "does not say what its base is"),
        ("/no/such/base", "its base /no/such/base is not there"),
        ("../base", "'../base' is a relative path"),
        ("here", "'here' is a relative path"),
        ("a/b/c", "'a/b/c' is a relative path"),
    ],
)
def test_a_base_that_cannot_be_found(base, said, adapter, copy, monkeypatch):
    """Would catch a base that depends on the current folder, or a guess."""
    folder = copy(adapter)
    (folder / "here").mkdir()
    monkeypatch.chdir(folder)
    edit_json(folder / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(CheckpointError, match=said):
        checkpoints.open(folder)


def test_what_is_no_plain_lora_is_refused(tiny, adapter, copy):
    """Would catch prompt tuning that cannot be merged, adapters on adapters, truncation, and a
    whole model that transformers would load with the adapter on top."""
    folder = copy(adapter)

    def refused() -> str:
        with pytest.raises(CheckpointError) as caught:
            checkpoints.open(folder)
        return str(caught.value)

    edit_json(folder / "adapter_config.json", peft_type="PROMPT_TUNING")
    assert "an adapter of type PROMPT_TUNING; want LoRA" in refused()
    edit_json(
        folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path=str(adapter)
    )
    assert "is an adapter too" in refused()
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    assert "is truncated" in refused()
    weights.write_bytes(whole)
    (folder / "model.safetensors").write_bytes((tiny() / "model.safetensors").read_bytes())
    assert "both a whole model and an adapter" in refused()


def test_nan_in_an_adapter_is_found(adapter, copy):
    """Would catch a check of the base only."""
    folder = copy(adapter)
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t[min(t)].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.q_proj\.weight holds"):
        checkpoints.open(folder).load()
