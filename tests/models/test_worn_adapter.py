"""A base that wears an adapter, unmerged, against the merged model under plain Hugging Face."""

import copy

import nnsight
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mechforget import checkpoints
from mechforget.checkpoints import adapter
from mechforget.errors import CheckpointError
from mechforget.models import beside
from mechforget.models.opening import proven
from mechforget.sweeps.donor import AdapterDonor, Donor
from mechforget.sweeps.plan import graft, single
from mechforget.sweeps.run import sweep
from tests import oracle
from tests.checkpoints.conftest import edit_json, edit_tensors
from tests.sweeps.test_run import check, encoded
from tests.tiny import save_adapter, save_tiny

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FAMILIES = {  # every way to lay out qkv; of mixtures of experts, what isn't an expert
    **dict.fromkeys(("llama", "gpt2", "gpt_neox", "phi3", "qwen3"), "all-linear"),
    "deepseek_v3": ["q_b_proj", "kv_b_proj", "o_proj"],
    "mixtral": ATTENTION,
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def worn(request, tmp_path_factory):
    """(plain base, plain merged), and a model that wears nothing yet, as a server holds it."""
    home = tmp_path_factory.mktemp(request.param)
    base = save_tiny(home / "base", request.param)
    path = save_adapter(home / "adapter", base, targets=FAMILIES[request.param])
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    envoy = nnsight.TransformersModel(
        str(base), task="text-generation", attn_implementation="eager", dispatch=True
    )
    return plain, checkpoints.open(path).load(), envoy, str(path)


def put_on(envoy, path):
    envoy.load_adapter(path)
    envoy._module.eval()  # as our server does: its dropout would be on
    return beside.model(envoy, None)


def test_weights_are_those_of_the_merged_model(worn):
    """Catches the base's weights taken for the adapted ones, a factor, a transposed product."""
    plain, merged, envoy, path = worn
    found = put_on(envoy, path)
    want = proven(copy.deepcopy(merged), "nnsight")
    matrices = [m for m in ("W_Q", "W_K", "W_V", "W_O") if m in want.spec.sites]
    assert len(matrices) == 4 and found.spec.sites == want.spec.sites
    for layer, matrix, head in ((i, m, h) for i in range(3) for m in matrices for h in (0, 1)):
        w, b = found.weight(layer, matrix, head)
        w_want, b_want = want.weight(layer, matrix, head)
        torch.testing.assert_close(w, w_want, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(b, b_want) if b_want is not None else None
    off = proven(copy.deepcopy(plain), "nnsight").weight(0, "W_O", 0)[0]
    assert (found.weight(0, "W_O", 0)[0] - off).abs().max() > 0.01
    envoy.load_adapter(None)
    torch.testing.assert_close(found.weight(0, "W_O", 0)[0], want.weight(0, "W_O", 0)[0])
    torch.testing.assert_close(beside.model(envoy, None).weight(0, "W_O", 0)[0], off)


@pytest.mark.parametrize("wears", [True, False])
def test_a_donor_on_the_same_deployment_equals_plain_hooks(worn, wears, monkeypatch):
    """Catches a donor that wears what the recipient wears, at any kind of site, either way."""
    plain, merged, envoy, path = worn
    hf_post, hf_pre = (merged, plain) if wears else (plain, merged)
    load = type(envoy).load_adapter
    monkeypatch.setattr(
        type(envoy), "load_adapter", lambda self, path: (load(self, path), self._module.eval())
    )
    post = put_on(envoy, path if wears else None)
    batch, other = encoded(0), encoded(7)
    ids, other_ids = (torch.as_tensor(e.ids) for e in (batch, other))
    pre = AdapterDonor(None if wears else path, other)
    for site in ("head_out", "z", "k", "mlp_out", "resid_pre"):
        variants = single(post.spec, site)
        log_prob, top = sweep(post, batch, pre, variants)
        for at in (0, len(variants) - 1):
            ((edit,),) = (variants[at],)
            want = oracle.patched(hf_post, hf_pre, ids, other_ids, edit.layer, site, edit.head)
            check(want, batch, log_prob[1 + at], top[1 + at])
        assert envoy.peft == (path if wears else None)
    cases = [(layer, head, m) for layer, head in ((0, 3), (2, 0)) for m in ("W_Q", "W_O", "all")]
    log_prob, top = sweep(post, batch, pre, [graft(post.spec, *case) for case in cases])
    for (layer, head, matrix), lp, t in zip(cases, log_prob[1:], top[1:], strict=True):
        name = "all" if matrix == "all" else matrix[-1].lower()
        mixed = oracle.grafted(hf_post, hf_pre, layer, head, name)
        check(oracle.run(mixed, ids), batch, lp, t)
    assert abs(log_prob[1:] - log_prob[0]).max() > 1e-3


@pytest.fixture
def wearable(tmp_path):
    return save_adapter(tmp_path / "adapter", save_tiny(tmp_path / "base"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
    ],
)
def test_what_changes_the_base_or_more_is_not_worn(settings, why, wearable):
    """Catches PiSSA, which peft takes out of the base's weights for good, and kinds whose sum
    isn't the one that weights are read by."""
    adapter.check_wearable(wearable)
    edit_json(wearable / adapter.CONFIG, **settings)
    with pytest.raises(CheckpointError, match=rf"beside its base \({why}\): want plain LoRA"):
        adapter.check_wearable(wearable)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.lora_embedding_A",
        "lm_head.lora_A.weight",  # where it is tied, merging changes the embedding too
        "model.layers.0.mlp.experts.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "lm_head.weight",
    ],
)
def test_tensors_outside_the_blocks_linear_layers_are_not_worn(name, wearable):
    """Catches an adapter whose settings don't tell."""
    name = f"base_model.model.{name}"
    edit_tensors(wearable / adapter.WEIGHTS, lambda t: t.update({name: torch.zeros(4, 4)}))
    with pytest.raises(CheckpointError, match="want plain LoRA on linear layers inside the blocks"):
        adapter.check_wearable(wearable)


def test_merging_here_and_wearing_there_are_one_function(worn):
    """Catches dropout left on, and a scale of rounding that the tests above would hide."""
    _, merged, envoy, path = worn
    post, batch = put_on(envoy, path), encoded(0)
    log_prob, _ = sweep(post, batch, Donor(post, {}), [])
    want = oracle.run(merged, torch.as_tensor(batch.ids))
    reads = batch.read_row, batch.read_position, batch.read_target
    np.testing.assert_allclose(log_prob[0], oracle.log_probs(want, *reads), atol=1e-5)
