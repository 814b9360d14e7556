"""Packed rows of every family: masks and positions go by depth, also within windows and chunks."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mechforget.models.masks import ANY, largest
from mechforget.models.opening import proven
from mechforget.tasks.tree import Tree
from tests.models.test_other_families import OTHERS
from tests.tiny import FAMILIES, VOCAB

WINDOWS = {  # windows and chunks shorter than the rows
    "mistral": dict(sliding_window=4),
    "mixtral": dict(sliding_window=4),
    "phi3": dict(sliding_window=4),
    "starcoder2": dict(sliding_window=4),
    "qwen2": dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "gemma2": dict(sliding_window=4),
    "gemma3_text": dict(sliding_window=4),
    "gpt_oss": dict(sliding_window=4),
    "olmo3": dict(sliding_window=4),
    "cohere2": dict(sliding_window=4),
    "llama4_text": dict(attention_chunk_size=4),
}
ROWS_ONLY = ("bloom", "mpt", "gpt_neo")
GPT_NEO = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    max_position_embeddings=128,
    attention_types=[[["global", "local", "global"], 1]],
    window_size=4,
)
CONFIGS = OTHERS | FAMILIES | {"gpt_neo": GPT_NEO}


def random_model(family):
    config = AutoConfig.for_model(family, **CONFIGS[family] | WINDOWS.get(family, {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn(weight.shape))
    return model


def rows():
    """Nine rows of 1 to 14 tokens: alike for 0 to 9 tokens, equal, one the beginning of another."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, VOCAB, (9, 14))
    ids[1:4, :6], ids[2, :9], ids[5], ids[6, :8] = ids[0, :6], ids[0, :9], ids[4], ids[7, :8]
    length = np.array([14, 12, 13, 11, 14, 14, 8, 14, 1])
    return ids, length, np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_node_computes_what_its_row_computes_alone(family, backend):
    """Catches a window that goes by places in the packed row, a mask for one kind of layer given to
    all, a position that isn't the depth, a token that sees a row beside its own, and a growing row
    with the masks of another; and families that are packed although they can't be."""
    hf_model = random_model(family)
    ids, length, packed = rows()
    with torch.no_grad():
        plain = [
            hf_model(torch.as_tensor(line[None, :n]), use_cache=False).logits[0]
            for line, n in zip(ids, length, strict=True)
        ]
    model = proven(hf_model, backend)
    assert (model.spec.nodes == 0) == (family in ROWS_ONLY)
    if family in ROWS_ONLY:
        return
    tree = Tree.of([ids], length, packed)
    grow = {(1, "resid_pre"): lambda t: torch.cat([t, t, t])}
    with torch.no_grad():
        logits = model.run(torch.as_tensor(tree.fill(ids)), grow, tree.parent)
    scale = max(one.abs().max().item() for one in plain)
    for r, want in enumerate(plain):
        for copy in (0, 2, 4):
            found = logits[tree.row[r] + copy, tree.node[r, : length[r]]]
            torch.testing.assert_close(found, want, atol=1e-5 * max(scale, 1), rtol=0)


def test_windows_are_shorter_than_the_rows_and_matter():
    """Catches a test that proves nothing: without its window each of these models says something
    else of these rows."""
    ids = torch.as_tensor(rows()[0][:1])
    for family in WINDOWS:
        short, long = random_model(family), random_model(family)
        for name in WINDOWS[family]:
            if name in ("sliding_window", "attention_chunk_size"):
                setattr(long.config, name, 64)
        for module in long.modules():
            if getattr(module, "sliding_window", None) == 4:
                module.sliding_window = 64
        with torch.no_grad():
            gap = (short(ids, use_cache=False).logits - long(ids, use_cache=False).logits).abs()
        assert gap.max() > 1e-3, family


def test_llama_4_stays_where_its_temperature_is_1():
    """Catches packed rows so long that Llama 4, which counts places, would scale their attention."""
    config = AutoConfig.for_model("llama4_text", **FAMILIES["llama4_text"], floor_scale=32)
    assert largest(config) == 31
    config.attn_temperature_tuning = False
    assert largest(config) == ANY


def test_a_family_that_goes_by_places_is_run_as_rows(monkeypatch):
    """Catches an unknown family that is believed: where packed rows differ, or can't be run at all,
    the proof says so and the model still opens."""
    from mechforget.checkpoints import families

    for name in ROWS_ONLY:
        monkeypatch.delitem(families.ROWS, name)
    monkeypatch.setitem(
        families.ROWS, "bloom", families.Family(order=families.BY_HEAD, adds="dense_4h_to_h")
    )
    monkeypatch.setitem(
        families.ROWS, "mpt", families.Family(order=families.IN_TURN, adds="down_proj")
    )
    for name in ROWS_ONLY:
        model = proven(random_model(name), "transformer_lens")
        assert model.spec.nodes == 0 and "z" in model.spec.sites
