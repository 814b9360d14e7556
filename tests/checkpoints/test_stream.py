"""Sums streamed from files, and where heads lie in them, against whole models and whole arrays."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mechforget import checkpoints
from mechforget.checkpoints import stream
from mechforget.checkpoints.layout import heads_of, layout
from mechforget.checkpoints.stored import stored
from mechforget.errors import CheckpointError
from tests.measures import toy
from tests.tiny import FAMILIES, save_adapter, save_tiny, tiny_model

MATRICES = ("W_Q", "W_K", "W_V", "W_O")


def opened(*folders):
    return [stored(checkpoints.open(folder)) for folder in folders]


def write(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "odd"} | config))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_each_heads_slice_is_the_one_that_the_model_uses(tiny, family):
    """Catches heads taken from the wrong rows, columns or thirds, in every family."""
    folder = tiny(family)
    model = toy.opened(tiny_model(family), "nnsight")
    (one,) = opened(folder)
    seen = set()
    for name, info in one.tensors.items():
        at = layout(name, info.shape, one.heads)
        if at.kind != "head":
            continue
        w = stream.matrix([one], name, slice(0, at.rows), 0, None)
        for part in at.parts:
            rows = slice(part.start, part.stop)
            ours = w[rows] if at.axis == 0 else w[:, rows]
            theirs, _ = model.weight(at.layer, part.matrix, part.unit)
            ours = ours.T if family == "gpt2" else ours
            np.testing.assert_array_equal(ours, theirs.detach().numpy())
            seen.add((at.layer, part.matrix, part.unit))
    latent = family == "deepseek_v3"
    groups = model.heads if latent else model.kv_heads
    units = dict(zip(MATRICES, (model.heads, groups, groups, model.heads), strict=True))
    assert seen == {(n, m, u) for n in range(3) for m in MATRICES for u in range(units[m])}


def test_what_is_not_plain_is_one_part():
    """Catches heads read into projections that hold more, or in another order: a gate beside the
    queries (Qwen3-Next), CodeGen's blocks, Falcon's groups, a vision tower's heads, cross attention; and a family that says no heads."""
    heads = heads_of({"model_type": "x", "num_attention_heads": 4, "head_dim": 8})
    name = "model.layers.1.self_attn.{}.weight"
    assert len(layout(name.format("q_proj"), (32, 16), heads).parts) == 4
    assert layout(name.format("q_proj"), (64, 16), heads).parts == ()
    assert layout(name.format("o_proj"), (32, 64), heads).parts == ()
    assert layout(name.format("query_key_value"), (96, 32), heads).parts == ()
    for kind, parts in (("x", 0), ("codegen", 0), ("minimax", 0), ("phi3", 12)):
        assert (
            len(layout(name.format("qkv_proj"), (96, 32), heads | {"model_type": kind}).parts)
            == parts
        )
    assert layout("vision." + name.format("q_proj"), (32, 16), heads).parts == ()
    assert layout("model.layers.1.cross_attn.q_proj.weight", (32, 16), heads).parts == ()
    assert layout(name.format("q_proj"), (32, 16), heads_of({})).parts == ()


def truth(pre, *rest):
    """norm² of pre, [t] of d_t² , max, changed; and the steps' inner products, in float64."""
    w = [np.asarray(x, np.float64).ravel() for x in (pre, *rest)]
    d = [x - w[0] for x in w[1:]]
    u = [b - a for a, b in pairwise(w)]
    gram = [[a @ b for b in u] for a in u]
    return (
        w[0] @ w[0],
        [x @ x for x in d],
        [abs(x).max() for x in d],
        [(x != 0).sum() for x in d],
        gram,
    )


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.sampled_from([1, 3, 255, 256, 257, 700]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    T=st.integers(1, 3),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    stretch=st.sampled_from([1, 600, 1 << 19]),
    seed=st.integers(0, 99),
)
def test_sums_are_those_of_whole_arrays(
    tmp_path_factory, rows, columns, dtype, T, scale, stretch, seed
):
    """Catches rows lost between stretches, tails of segments, steps taken from the wrong
    checkpoint, and float16, bfloat16 or float64 read as something else."""
    root, generator = tmp_path_factory.mktemp("sums"), torch.Generator().manual_seed(seed)
    values = [
        scale * torch.randn(rows, columns, generator=generator).double() for _ in range(T + 1)
    ]
    values[1][0] = values[0][0]  # some unchanged
    values = [v.to(dtype) for v in values]
    folders = [write(root / str(t), {"w": v}) for t, v in enumerate(values)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "STRETCH", stretch)
        (found,) = stream.sums(opened(*folders))
    pre, moved, largest, changed, gram = truth(*(v.double().numpy() for v in values))
    close = dict(rtol=1e-6, atol=1e-6 * pre)
    np.testing.assert_allclose(found.pre[0], pre, rtol=1e-6)
    np.testing.assert_allclose(found.moved[:, 0], moved, rtol=1e-6)
    np.testing.assert_allclose(found.largest[:, 0], largest, rtol=1e-6)
    np.testing.assert_array_equal(found.changed[:, 0], changed)
    np.testing.assert_allclose(found.steps[..., 0], gram, **close)


def test_constant_steps_and_extreme_values_are_right_to_a_millionth(tmp_path):
    """Catches long float32 sums (whose rounding is systematic for equal values), and squares that
    float32 can't hold, at both ends."""
    for scale in (0.1, 1e-30, 1e25):
        pre = torch.full((40, 4096), scale)
        post = pre * (1 + 2**-7)
        folders = [write(tmp_path / n, {"w": w}) for n, w in (("a", pre), ("b", post))]
        (found,) = stream.sums(opened(*folders))
        wants = truth(pre.double().numpy(), post.double().numpy())
        for ours, want in zip((found.pre, found.moved[0], found.largest[0]), wants, strict=False):
            np.testing.assert_allclose(ours, want, rtol=1e-7)
        assert found.changed[0, 0] == pre.numel()


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_an_adapter_is_its_merged_model(tiny, tmp_path, family):
    """Catches a scale, a transposition or a pattern left out, and a difference lost in rounding."""
    base = tiny(family)
    first = save_adapter(tmp_path / "one", base)
    second = save_adapter(tmp_path / "two", base, seed=1)
    settings_ = json.loads((second / "adapter_config.json").read_text())
    module = {"llama": "q_proj", "gpt2": "c_attn", "phi3": "qkv_proj"}[family]
    settings_ |= {"use_rslora": True, "alpha_pattern": {module: 3}}
    (second / "adapter_config.json").write_text(json.dumps(settings_))
    merged = [checkpoints.open(f).load().state_dict() for f in (base, first, second)]
    names = {name: name.removeprefix("model.").removeprefix("transformer.") for name in merged[0]}
    merged = [{names[n]: w.double().numpy() for n, w in m.items()} for m in merged]
    for order in ((0, 1), (1, 0), (1, 2)):
        found = list(stream.sums(opened(*[(base, first, second)[i] for i in order])))
        assert any(one.moved.any() for one in found)
        for one in found:
            a, b = (merged[i][one.name] for i in order)
            np.testing.assert_allclose(one.pre.sum(), (a**2).sum(), rtol=1e-6)
            np.testing.assert_allclose(one.moved.sum(), ((b - a) ** 2).sum(), rtol=1e-5, atol=1e-12)


def test_names_dtypes_ties_and_buffers_are_seen_through(tiny, tmp_path):
    """Catches a difference made of spelling: saved without the prefix, in shards, with the tied
    copy or old buffers beside it, and in another dtype."""
    base = tiny("gemma2")
    tensors = load_file(base / "model.safetensors")
    plain = {n.removeprefix("model."): w.bfloat16() for n, w in tensors.items()}
    plain["lm_head.weight"] = plain["embed_tokens.weight"].clone()
    plain["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    config = json.loads((base / "config.json").read_text())
    other = write(tmp_path / "other", plain, **config)
    found = {one.name: one for one in stream.sums(opened(base, other))}
    assert len(found) == len(tensors)
    w = tensors["model.layers.1.mlp.up_proj.weight"]
    want = ((w.bfloat16().double() - w.double()) ** 2).sum()
    np.testing.assert_allclose(found["layers.1.mlp.up_proj.weight"].moved.sum(), want, rtol=1e-6)


def refused(*folders):
    with pytest.raises(CheckpointError) as error:
        list(stream.sums(opened(*folders)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_compared_is_said_before_data_is_read(tiny, copy, tmp_path, monkeypatch):
    """Catches a comparison of unlike things, and one that reads gigabytes before it says so."""
    monkeypatch.setattr(stream._Walk, "sums", lambda self: pytest.fail("data was read"))
    base = tiny()
    assert "architecture llama / mistral" in refused(base, tiny("mistral"))
    config = json.loads((base / "config.json").read_text())
    tensors = load_file(base / "model.safetensors")
    other = write(tmp_path / "a", tensors, **config | {"num_attention_heads": 8})
    assert "config: heads 4 / 8" in refused(base, other)
    name = "model.norm.weight"
    other = write(tmp_path / "b", tensors | {name: torch.ones(33)}, **config)
    assert "shapes: norm.weight [32] / [33]" in refused(base, other)
    less = {n: w for n, w in tensors.items() if n != name}
    assert "tensors only in the first: norm.weight" in refused(
        base, write(tmp_path / "c", less, **config)
    )
    whole = tensors | {name: torch.ones(32, dtype=torch.int8)}
    assert "stored as I8" in refused(base, write(tmp_path / "d", whole, **config))
    quantised = write(tmp_path / "e", tensors, **config, quantization_config={})
    assert "quantised" in refused(base, quantised)
    short = copy(base)
    data = (short / "model.safetensors").read_bytes()
    (short / "model.safetensors").write_bytes(data[:-4])
    assert "truncated" in refused(base, short)
    (short / "model.safetensors").rename(short / "pytorch_model.bin")
    assert "pickle" in refused(base, short)
    index = {"weight_map": {"w": "model-00002-of-00002.safetensors"}}
    (short / "pytorch_model.bin").unlink()
    (short / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "shards are missing" in refused(base, short)
    assert "no such file or folder" in refused(base, tmp_path / "nowhere")
    (tmp_path / "x.gguf").write_bytes(b"GGUF....")
    assert "GGUF" in refused(base, tmp_path / "x.gguf")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 1, "both"])
def test_nan_and_infinities_are_named(tiny, tmp_path, bad, where):
    """Catches a NaN that becomes a norm, and one that hides in two equal files."""
    base = tiny()
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][5, 7] = bad
    config = json.loads((base / "config.json").read_text())
    broken = write(tmp_path / "broken", tensors, **config)
    pair = {0: (broken, base), 1: (base, broken), "both": (broken, broken)}[where]
    said = refused(*pair)
    assert f"{broken}: layers.2.mlp.up_proj.weight holds NaN or infinite values (1 of" in said


def test_equal_bytes_and_equal_files_are_zero(tmp_path):
    """Catches a fast path that isn't exact: one bit at the end of a long tensor, and links."""
    folder = save_tiny(tmp_path / "a")
    again = save_tiny(tmp_path / "b")
    for other in (folder, again):
        assert not any(
            one.moved.any() or one.changed.any() for one in stream.sums(opened(folder, other))
        )
    w = torch.ones(3, 5001)
    v = w.clone()
    v[2, 5000] = 1 + 2.0**-23
    pair = [write(tmp_path / n, {"w": x}) for n, x in (("c", w), ("d", v))]
    (one,) = stream.sums(opened(*pair))
    assert one.changed[0, 0] == 1 and one.largest[0, 0] == 2.0**-23
