"""Families that no row of the table names: read like `STANDARD`, and as exact, or refused."""

import copy
import re

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mechforget import checkpoints, models, tasks
from mechforget.errors import ModelError
from mechforget.measures import Inputs, patching
from mechforget.models.opening import proven
from mechforget.models.sites import MATRICES
from tests.tiny import _BASE, VOCAB, tiny_tokenizer

OLD_STYLE = dict(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=128)
OTHERS = {
    "bloom": dict(vocab_size=VOCAB, hidden_size=32, n_layer=3, n_head=4),  # ALiBi by row and head
    "mpt": dict(vocab_size=VOCAB, d_model=32, n_layers=3, n_heads=4, max_seq_len=128),  # by head
    "gptj": dict(OLD_STYLE, rotary_dim=4),
    "opt": dict(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=128,
        word_embed_proj_dim=32,
    ),
    "stablelm": _BASE,
    "starcoder2": _BASE,
    "gemma": dict(_BASE, head_dim=16),  # heads wider than the stream's share
    "granite": dict(_BASE, residual_multiplier=0.22, logits_scaling=2.0),
    "olmo3": dict(_BASE, sliding_window=4),
    "cohere2": _BASE,
    "glm4": dict(_BASE, head_dim=8),
    "llama": dict(_BASE, num_key_value_heads=1, attention_bias=True, tie_word_embeddings=True),
}
ROWS = (("The capital of France is", "Paris"), ("In Germany", "Berlin"), ("Go to Peru", "Lima"))


def folder(root, family, seed):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **OTHERS[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    model.save_pretrained(root / str(seed))
    tiny_tokenizer().save_pretrained(root / str(seed))
    return model, root / str(seed)


def output_projection(model, layer):
    name = rf"\.{layer}\..*att\w*\.(o_proj|out_proj|dense|c_proj)$"
    return next(m for n, m in model.named_modules() if re.search(name, n))


def log_p(model, prompt, answer, hooks=()):
    handles = [module.register_forward_pre_hook(fn) for module, fn in hooks]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer]), use_cache=False).logits[0].double()
    for handle in handles:
        handle.remove()
    reads = logits.log_softmax(-1)[len(prompt) - 1 :]
    return sum(reads[i, token].item() for i, token in enumerate(answer))


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("family", sorted(OTHERS))
def test_a_familys_z_is_exact_or_the_family_is_refused(family, backend, tmp_path):
    """Catches biases that are lost or mixed up when rows are added, and heads of a wrong width."""
    (pre, a), (post, b) = folder(tmp_path, family, 0), folder(tmp_path, family, 1)
    tokenizer, records = (
        tiny_tokenizer(),
        [f'{{"prompt": "{p}", "answer": "{w}"}}\n' for p, w in ROWS],
    )
    (tmp_path / "task.jsonl").write_text("".join(records))
    task = tasks.load(str(tmp_path / "task.jsonl"))
    loading = models.Loading(backend)
    inputs = Inputs.of(checkpoints.Pair(a, b), task, loading=loading)
    found = patching(inputs, site="z").effect.sel(metric="log_prob", direction="restore")
    for i, (text, word) in enumerate(ROWS):
        prompt, answer = tokenizer(text)["input_ids"], tokenizer(" " + word)["input_ids"]
        base = log_p(post, prompt, answer)
        for layer, head in ((0, 1), (2, 3)):
            taken = []
            hook = output_projection(pre, layer), lambda m, x, t=taken: t.append(x[0].clone())
            log_p(pre, prompt, answer, [hook])
            width = taken[0].shape[-1] // 4

            def swap(module, args, z=taken[0], at=slice(head * width, (head + 1) * width)):
                mixed = args[0].clone()
                mixed[..., at] = z[..., at]
                return (mixed, *args[1:])

            want = log_p(post, prompt, answer, [(output_projection(post, layer), swap)]) - base
            got = found.sel(layer=layer, head=head, prompt=i)
            np.testing.assert_allclose(got, want, atol=1e-5)
    assert abs(found).max() > 1e-3


def random_model(family, **fields):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**_BASE, **fields})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    return model.eval().requires_grad_(False)


def test_a_fused_projection_of_another_order_is_not_taken_apart():
    """Catches CodeGen's blocks of q, v, k read as thirds: its query 3 would move head 1."""
    model = proven(random_model("codegen", **OLD_STYLE, rotary_dim=4), "nnsight")
    assert model.spec.sites & {*"qkv", *MATRICES} == {"W_O"}
    assert {"z", "head_out", "resid_pre", "attn_out", "mlp_out"} <= model.spec.sites


MIXTURE = dict(num_local_experts=4, num_experts_per_tok=2)
HYBRIDS = {
    "lfm2": dict(full_attn_idxs=[2]),
    "minimax": dict(head_dim=8, **MIXTURE),
    "granitemoehybrid": dict(
        **MIXTURE,
        **dict(layer_types=["mamba", "mamba", "attention"], shared_intermediate_size=16),
        **dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8),
    ),
}


@pytest.mark.parametrize("family", sorted(HYBRIDS))
def test_layers_of_another_kind_are_refused(family):
    """Catches channels of a convolution or a linear attention reported as heads."""
    with pytest.raises(ModelError, match=r"model\.layers\.\d\.\w+ is of another kind or width"):
        proven(random_model(family, **HYBRIDS[family]), "nnsight")


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_other_numbers_of_heads_in_the_middle_are_refused(backend):
    """Catches six heads read as four in a layer that no probe is in."""
    model = random_model("laguna", head_dim=8, num_attention_heads_per_layer=[4, 6, 4])
    with pytest.raises(ModelError, match=r"wide in layer 0 and 12 in layer 1|layers\.1\.self_attn"):
        proven(model, backend)


def test_what_the_backend_cannot_serve_is_refused(tmp_path):
    """Catches a model without attention that is read as if it had some."""
    config = AutoConfig.for_model("mamba", vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"MambaForCausalLM cannot be read .* is not supported"):
        models.open(checkpoints.open(tmp_path))
    with pytest.raises(ModelError, match="is not supported") as caught:
        models.open(checkpoints.open(tmp_path), models.Loading("nnsight"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["mpt", "gptj", "opt", "bloom", "starcoder2", "cohere2"])
def test_a_stream_before_a_layer_norm_is_seen(family):
    """Catches a probe that a norm undoes, whatever its gain: `resid_post`, and with it drift, would be
    left out of models whose stream is large beside the norm's epsilon, as trained ones' are."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **OTHERS[family])
    hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in hf_model.parameters():
            weight.mul_(10 if weight.dim() > 1 else 1)
    for backend in models.BACKENDS[:2]:
        assert "resid_post" in proven(copy.deepcopy(hf_model), backend).spec.sites
