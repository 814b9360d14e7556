"""Weights against numpy and scipy on whole matrices, and against damage put into known heads."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mechforget import Pair, Sequence, checkpoints
from mechforget.errors import MeasureError
from mechforget.measures import weights
from mechforget.measures.spectra import effective_rank, overlap, spectrum, stable_rank
from mechforget.measures.trajectory import trajectory
from mechforget.measures.weights import table
from tests import oracle
from tests.measures import toy
from tests.tiny import save_adapter, save_tiny, tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """θ₀, θ₁, θ₂ of a family: two others' weights, a fifth of the way."""
    made = {}

    def get(family):
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            model = tiny_model(family)
            made[family] = [root / str(t) for t in range(3)]
            for t, folder in enumerate(made[family]):
                model.save_pretrained(folder)
                for w, v in zip(
                    model.parameters(), tiny_model(family, t + 1).parameters(), strict=True
                ):
                    w.data += 0.2 * v.data
        return made[family]

    return get


def tensors(folder):
    one = checkpoints.open(folder)
    return {n: one.read(n).double().numpy() for n in one.tensors()}


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (40, 3)])
@given(rank=st.integers(0, 5), k=st.integers(1, 9), seed=st.integers(0, 999))
@example(rank=3, k=1, seed=540)  # rounding just above n ε
@settings(max_examples=15, deadline=None)
def test_spectra_are_scipys(shape, rank, k, seed):
    """Catches left taken for right, tall for wide, noise counted as rank, and k above the rank."""
    rng = np.random.default_rng(seed)
    rank = min(rank, *shape)
    w = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    w = w if rank < min(shape) else w.astype("f4")  # whose rounding would be rank
    u, s, vt = scipy.linalg.svd(w.astype("f8"), full_matrices=False)
    found = spectrum(w, k)
    top = s[0] if rank else 1
    np.testing.assert_allclose(found.values, s, atol=3e-7 * top)
    if not rank:
        assert np.isnan(stable_rank(found.values)) and np.isnan(effective_rank(found.values))
        assert np.isnan(overlap(found.left, found.left))
        return
    used = min(k, rank)
    assert (found.values > 0).sum() == rank
    assert found.left.shape == (shape[0], used) and found.right.shape == (shape[1], used)
    rebuilt = found.left * found.values[:used] @ found.right.T
    np.testing.assert_allclose(rebuilt, (u[:, :used] * s[:used]) @ vt[:used], atol=1e-5 * top)
    fro = np.linalg.norm(w.astype("f8")) ** 2 / np.linalg.norm(w.astype("f8"), 2) ** 2
    np.testing.assert_allclose(stable_rank(found.values), fro, rtol=1e-6)
    p = s[:rank] / s[:rank].sum()
    np.testing.assert_allclose(
        effective_rank(found.values), np.exp(scipy.stats.entropy(p)), rtol=1e-4
    )


def test_overlap_has_its_closed_forms():
    """Catches an overlap that depends on the basis, isn't 0 to 1, or isn't k / d by chance."""
    rng = np.random.default_rng(0)
    q = scipy.stats.ortho_group.rvs(12, random_state=rng)
    a = q[:, :3]
    turned = a @ scipy.stats.ortho_group.rvs(3, random_state=rng)
    np.testing.assert_allclose(overlap(a, turned), 1)
    np.testing.assert_allclose(overlap(a, q[:, 3:6]), 0, atol=1e-12)
    np.testing.assert_allclose(overlap(a, q[:, 2:5]), 1 / 3)
    others = [scipy.stats.ortho_group.rvs(12, random_state=rng)[:, :3] for _ in range(400)]
    assert abs(np.mean([overlap(a, b) for b in others]) - 3 / 12) < 0.02
    angles = scipy.linalg.subspace_angles(a, others[0])
    np.testing.assert_allclose(overlap(a, others[0]), (np.cos(angles) ** 2).mean())


@given(T=st.integers(1, 6), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_trajectory_is_that_of_the_points(T, seed):
    """Catches cosines of the wrong neighbours, an uncentred PCA, and points out of order."""
    points = np.random.default_rng(seed).normal(size=(T + 1, 9)).cumsum(0)
    u = np.diff(points, axis=0)
    found = trajectory(u @ u.T)
    lengths = np.linalg.norm(u, axis=1)
    np.testing.assert_allclose(found["path"], lengths.sum())
    np.testing.assert_allclose(found["displacement"], np.linalg.norm(points[-1] - points[0]))
    cosine = [u[t] @ u[t - 1] / lengths[t] / lengths[t - 1] for t in range(1, T)]
    np.testing.assert_allclose(found["cosine"], [np.nan, *cosine], atol=1e-12)
    a, s, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    np.testing.assert_allclose(found["explained"], (s**2 / (s**2).sum())[:T], atol=1e-9)
    ours = found["coordinate"]
    np.testing.assert_allclose(ours @ ours.T, (a * s**2) @ a.T, atol=1e-8)
    assert (ours[-1] >= -1e-9).all()
    np.testing.assert_allclose(ours.T @ ours, np.diag(s[:T] ** 2), atol=1e-8)


def test_a_straight_line_and_a_return_have_closed_forms():
    """Catches a path that is the displacement."""
    straight, back = np.ones((3, 3)), np.array([[1.0, -1], [-1, 1]])
    assert trajectory(straight)["path"] == trajectory(straight)["displacement"] == 3
    np.testing.assert_allclose(trajectory(straight)["explained"], [1, 0, 0], atol=1e-12)
    assert trajectory(back)["path"] == 2 and trajectory(back)["displacement"] == 0
    still = trajectory(np.zeros((2, 2)))
    assert (
        still["path"] == 0
        and np.isnan(still["cosine"]).all()
        and np.isnan(still["explained"]).all()
    )


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "phi3", "mixtral", "llama4_text", "deepseek_v3"]
)
def test_a_pair_is_what_whole_matrices_say(folders, family):
    """Catches any number under the wrong name, layer, head, expert or tensor."""
    pre, _, post = folders(family)
    found = weights(Pair(pre, post), spectra=True, k=3)
    a, b = tensors(pre), tensors(post)
    models = [toy.opened(checkpoints.open(f).load(), "nnsight") for f in (pre, post)]
    for layer in (0, 2):
        for matrix, groups in (("W_Q", 0), ("W_K", 1), ("W_V", 1), ("W_O", 0)):
            units = models[0].kv_heads if groups else models[0].heads
            for head in range(units):
                w, v = (m.weight(layer, matrix, head)[0].detach().double().numpy() for m in models)
                d, here = v - w, found.sel(layer=layer, matrix=matrix, head=head)
                np.testing.assert_allclose(here.norm, np.linalg.norm(d), rtol=1e-6)
                np.testing.assert_allclose(here.norm_pre, np.linalg.norm(w), rtol=1e-6)
                np.testing.assert_allclose(
                    here.relative, np.linalg.norm(d) / np.linalg.norm(w), rtol=1e-6
                )
                np.testing.assert_allclose(here.largest, abs(d).max(), rtol=1e-6)
                assert here.changed == (d != 0).mean()
            assert np.isnan(found.norm.sel(layer=layer, matrix=matrix)[units:]).all()
    d = {n.removeprefix("model.").removeprefix("transformer."): (b[n] - a[n], a[n]) for n in a}
    names = [n for n in found.tensor.values if "[" not in n]
    for name in names:
        here, (change, w) = found.sel(tensor=name), d[name]
        np.testing.assert_allclose(here.tensor_norm, np.linalg.norm(change), rtol=1e-6)
        if np.isnan(here.tensor_stable_rank):
            continue
        u, s, vt = scipy.linalg.svd(change)
        u0, _, vt0 = scipy.linalg.svd(w)
        np.testing.assert_allclose(here.tensor_stable_rank, (s**2).sum() / s[0] ** 2, rtol=1e-5)
        np.testing.assert_allclose(
            here.tensor_effective_rank, np.exp(scipy.stats.entropy(s)), rtol=1e-4
        )
        for side, x, y in (("left", u[:, :3], u0[:, :3]), ("right", vt[:3].T, vt0[:3].T)):
            want = (np.cos(scipy.linalg.subspace_angles(x, y)) ** 2).mean()
            np.testing.assert_allclose(here[f"tensor_overlap_{side}"], want, rtol=1e-3, atol=1e-6)
            assert here[f"tensor_chance_{side}"] == 3 / len(x)
    if "expert" in found.dims:
        for layer, projection, expert in [(1, found.projection.values[0], 2)]:
            stacked = f"layers.{layer}.feed_forward.experts.{projection}"
            one = next(
                (
                    n
                    for n in d
                    if f"layers.{layer}." in n and f".experts.{expert}.{projection}" in n
                ),
                None,
            )
            change = d[one][0] if one else d[stacked][0][expert]
            here = found.sel(layer=layer, projection=projection, expert=expert)
            np.testing.assert_allclose(here.expert_norm, np.linalg.norm(change), rtol=1e-6)
            s = scipy.linalg.svdvals(change)
            np.testing.assert_allclose(here.expert_stable_rank, (s**2).sum() / s[0] ** 2, rtol=1e-5)
    total = sum((x**2).sum() for x, _ in d.values()) / sum((w**2).sum() for _, w in d.values())
    np.testing.assert_allclose(found.total_relative, np.sqrt(total), rtol=1e-6)


def test_fused_matrices_are_there_by_themselves(folders):
    """Catches spectra of queries, keys and values mixed, and heads of one in another."""
    pre, _, post = folders("phi3")
    found = weights(Pair(pre, post))
    name = "layers.1.self_attn.qkv_proj.weight"
    change = tensors(post)[f"model.{name}"] - tensors(pre)[f"model.{name}"]
    for matrix, rows in (("W_Q", slice(0, 32)), ("W_K", slice(32, 48)), ("W_V", slice(48, 64))):
        here = found.sel(tensor=f"{name}[{matrix}]")
        s = scipy.linalg.svdvals(change[rows])
        np.testing.assert_allclose(here.tensor_norm, np.linalg.norm(change[rows]), rtol=1e-6)
        np.testing.assert_allclose(here.tensor_stable_rank, (s**2).sum() / s[0] ** 2, rtol=1e-5)
        assert here.tensor_matrix == matrix and here.tensor_layer == 1


def test_a_sequence_is_its_pairs_and_its_path(folders):
    """Catches ΔW against another than θ₀, and inner products of the wrong steps."""
    three = folders("llama")
    found = weights(Sequence(three), k=3)
    for t in (1, 2):
        pair = weights(Pair(three[0], three[t]), k=3)
        for name in pair.data_vars:
            ours = found[name].sel(checkpoint=t).transpose(*pair[name].dims)
            np.testing.assert_allclose(ours, pair[name], rtol=1e-6, err_msg=str(name))
    w = [tensors(f) for f in three]
    u = [{n: b[n] - a[n] for n in a} for a, b in pairwise(w)]
    whole = [np.concatenate([v.ravel() for v in step.values()]) for step in u]
    np.testing.assert_allclose(found.total_path, sum(np.linalg.norm(x) for x in whole), rtol=1e-6)
    np.testing.assert_allclose(found.total_displacement, np.linalg.norm(sum(whole)), rtol=1e-6)
    cosine = whole[0] @ whole[1] / np.linalg.norm(whole[0]) / np.linalg.norm(whole[1])
    np.testing.assert_allclose(found.total_cosine.sel(checkpoint=2), cosine, atol=1e-7)
    one = [np.concatenate([v.ravel() for n, v in s.items() if "layers.1." in n]) for s in u]
    np.testing.assert_allclose(
        found.layer_path.sel(layer=1), sum(np.linalg.norm(x) for x in one), rtol=1e-6
    )
    name = "layers.2.self_attn.o_proj.weight"
    steps = [s[f"model.{name}"] for s in u]
    head = [s[:, 8:16] for s in steps]
    here = found.sel(layer=2, matrix="W_O", head=1)
    np.testing.assert_allclose(here.path, sum(np.linalg.norm(x) for x in head), rtol=1e-6)
    np.testing.assert_allclose(here.displacement, np.linalg.norm(sum(head)), rtol=1e-6)
    tops = [scipy.linalg.svd(s)[0][:, :3] for s in steps]
    want = (np.cos(scipy.linalg.subspace_angles(*tops)) ** 2).mean()
    ours = found.tensor_steps_left.sel(tensor=name)
    np.testing.assert_allclose(ours.sel(checkpoint=2), want, rtol=1e-3)
    assert np.isnan(ours.sel(checkpoint=1))


@pytest.mark.parametrize("matrix", ["q", "k", "v", "o"])
def test_one_scrambled_head_is_the_only_row(tmp_path, matrix):
    """Catches a change shown anywhere but where it was made."""
    save_tiny(tmp_path / "pre")
    model = copy.deepcopy(tiny_model())
    _, attention, o, _, _ = oracle.places(model, 1)
    with torch.no_grad():
        if matrix == "o":
            o.weight[:, oracle.z_columns(model, 1)] += 1
        else:
            module, rows = oracle.qkv_columns(model, matrix, 1)
            getattr(attention, module).weight[rows] += 1
    model.save_pretrained(tmp_path / "post")
    found = weights(Pair(tmp_path / "pre", tmp_path / "post"))
    at = dict(layer=1, matrix=f"W_{matrix.upper()}", head=1)
    for name in ("relative", "norm", "largest", "changed"):
        assert found[name].sel(at) > 0
        elsewhere = found[name].copy()
        elsewhere.loc[at] = 0
        assert (elsewhere.fillna(0) == 0).all()
    hit = found.tensor_norm.where(found.tensor_norm > 0, drop=True)
    assert hit.tensor_matrix.values.tolist() == [at["matrix"]] and hit.tensor_layer == 1
    np.testing.assert_allclose(found.total_norm, found.norm.sel(at))
    assert np.isclose(hit, found.norm.sel(at)) and found.changed.sel(at) == 1


def test_a_clean_pair_is_zero_and_says_so(tmp_path):
    """Catches rounding shown as change, and NaN where nothing moved."""
    save_tiny(tmp_path / "a")
    rows, said = table(Pair(tmp_path / "a", tmp_path / "a"), spectra=True)
    assert "are the same files" in said
    assert (rows[["relative", "norm", "largest", "changed"]] == 0).all(axis=None)
    save_tiny(tmp_path / "b")
    rows, said = table(Pair(tmp_path / "a", tmp_path / "b"))
    assert said == "" and (rows["norm"] == 0).all()
    model = tiny_model().bfloat16()
    model.save_pretrained(tmp_path / "half")
    rows, said = table(Pair(tmp_path / "a", tmp_path / "half"))
    assert "stored as F32 / BF16, compared in float32" in said and (rows["norm"] > 0).any()


def test_zeros_are_not_divided_by(tmp_path):
    """Catches a NaN where an unused bias stays 0, and a finite share of nothing."""
    for name, last in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        tensors = {"still": torch.zeros(4), "woken": torch.full((4,), last)}
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    rows, _ = table(Pair(tmp_path / "a", tmp_path / "b"))
    assert rows.set_index("tensor")["relative"].to_dict() == {
        "still": 0,
        "woken": np.inf,
        "": np.inf,
    }


def test_an_adapter_has_its_rank(tmp_path):
    """Catches a merged difference, whose rounding has full rank."""
    base = save_tiny(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    found = weights(Pair(base, adapter))
    here = found.sel(tensor="layers.0.self_attn.q_proj.weight")
    assert 1 <= here.tensor_stable_rank <= here.tensor_effective_rank <= 4 + 1e-9


def test_a_wrong_subject_is_named(tmp_path):
    """Catches a path taken for a pair."""
    with pytest.raises(MeasureError, match="got str, want a Pair or a Sequence"):
        weights("a")  # type: ignore[arg-type]
