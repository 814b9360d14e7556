"""Drift against brute force, scipy, closed forms, and changes planted in known layers and heads."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.stats import entropy

from mechforget.errors import MeasureError
from mechforget.measures import Inputs, drift
from mechforget.measures.drift import change
from mechforget.sweeps.reads import clusters, prompt_tokens, read
from tests import oracle
from tests.measures import toy
from tests.tiny import tiny_model, tiny_tokenizer


def cka(x, y, cluster):
    """Unbiased CKA by masks over all tuples of clusters."""
    member = np.equal.outer(cluster, np.unique(cluster)).astype(float)
    member /= member.sum(0)
    n = member.shape[1]
    differ = 1 - np.eye(n)
    abc = differ[:, :, None] * differ[:, None] * differ[None]
    abcd = abc[..., None] * differ[:, None, None] * differ[None, :, None] * differ[None, None]

    def hsic(k, m):
        two = (member.T @ (k * m) @ member * differ).sum() / differ.sum()
        k, m = k @ member, m @ member
        three = np.einsum("ia,ib,ic,abc", member, k, m, abc) / abc.sum()
        k, m = member.T @ k, member.T @ m
        return two + np.einsum("ab,cd,abcd", k, m, abcd) / abcd.sum() - 2 * three

    x, y = x - x.mean(0), y - y.mean(0)
    k, m = x @ x.T, y @ y.T
    with np.errstate(invalid="ignore"):
        return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def by_hand(x, y, cluster):
    """Every quantity of `change`, with nothing of it: eigenvectors, scipy's Procrustes."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    found = {"shift": np.sqrt(((y - x) ** 2).sum(1) / (x**2).sum(1)), "cka": cka(x, y, cluster)}
    x, y = x - x.mean(0), y - y.mean(0)
    unit = [m / np.sqrt((m**2).sum()) for m in (x, y)]
    _, found["procrustes"] = orthogonal_procrustes(*unit)
    found["procrustes"] = 1 - found["procrustes"]
    values, vectors = zip(*(np.linalg.eigh(m.T @ m) for m in (x, y)), strict=True)
    found["rank"] = np.array([np.exp(entropy(v.clip(0))) for v in values])
    k = min(10, len(set(cluster)) // 4, x.shape[1] // 2)
    cosines = np.linalg.svd(vectors[0][:, -k:].T @ vectors[1][:, -k:], compute_uv=False)
    found["angle"] = np.degrees(np.arccos(cosines.clip(-1, 1)))
    return found


@pytest.mark.parametrize(("n", "d"), [(41, 6), (41, 40), (44, 300)])
def test_equals_scipy_and_brute_force(n, d):
    """Catches a missing centring or norm, σ for σ², radians, prompts and dimensions swapped, a
    reduction to fewer dimensions that isn't an isometry."""
    rng = np.random.default_rng(d)
    cluster = np.concatenate([np.arange(10), rng.permutation(10), np.arange(n - 20) % 10])
    x = rng.normal(size=(n, d)) * np.linspace(3, 0.1, d) + 5
    y = x @ np.linalg.qr(rng.normal(size=(d, d)) + 5 * np.eye(d))[0] + rng.normal(size=(n, d))
    got, want = change(x, y, cluster), by_hand(x, y, cluster)
    k = int(got["k"])
    assert k == min(10, 10 // 4, d // 2) and np.isnan(got["angle"][k:]).all()
    np.testing.assert_allclose(got["cka"][0], want.pop("cka"), atol=1e-9)
    np.testing.assert_allclose(got["angle"][:k], want.pop("angle"), atol=1e-4)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, atol=1e-9, err_msg=name)


def test_closed_forms():
    """Catches everything that a wrong constant would: angles of 0 and 30 degrees, ranks of 1 and
    of equal directions, a rotation that only the basis shows, no change at all."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 12)) * np.linspace(2, 1, 12)
    same = change(x, x, np.arange(40))
    assert (same["shift"] == 0).all() and abs(same["procrustes"]) < 1e-12
    np.testing.assert_allclose(same["angle"][:6], 0, atol=1e-6)
    assert same["k"] == 6 and same["cka"].tolist() == [1, 1, 1]
    rotation, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    turned = change(x, 3 * x @ rotation, np.arange(40))
    assert turned["procrustes"] < 1e-12 and abs(turned["cka"][0] - 1) < 1e-12
    assert turned["angle"][5] > 30 and turned["shift"].min() > 0.5
    # Two planes of 6 dimensions that share e1 and enclose 30 degrees.
    plane = rng.normal(size=(40, 2)) * [3, 1]
    pre, post = np.zeros((40, 6)), np.zeros((40, 6))
    pre[:, :2] = plane
    post[:, 0], post[:, 1], post[:, 2] = plane[:, 0], *(plane[:, 1] * f for f in (0.75**0.5, 0.5))
    found = change(pre, post, np.arange(40))
    assert found["k"] == 2  # what has no variance has no direction
    np.testing.assert_allclose(found["angle"][:2], [0, 30], atol=1e-6)
    line, square = np.zeros((40, 6)), np.zeros((40, 6))
    line[:, 0], square[:20, 1], square[20:, 1] = plane[:, 0], 1, -1
    square[::2, 2], square[1::2, 2] = 1, -1
    np.testing.assert_allclose(change(line, square, np.arange(40))["rank"], [1, 2])


def test_unrelated_rows_fool_procrustes_but_not_cka():
    """Catches the biased CKA, and shows what the docstring says of Procrustes."""
    x, y = np.random.default_rng(1).normal(size=(2, 32, 512))
    found = change(x, y, np.arange(32))
    assert found["cka"][1] < 0 < found["cka"][2] and abs(found["cka"][0]) < 0.2
    assert found["procrustes"] < 0.3 and found["k"] == 8


def test_what_several_tokens_or_a_first_token_would_say():
    """Why a row is one token of a prompt, and never position 0: unrelated activations seem the
    same where neighbours are alike, or where one token is huge."""
    rng = np.random.default_rng(2)
    prompts = rng.normal(size=(2, 40, 1, 64)) + 0.3 * rng.normal(size=(2, 40, 6, 64))
    tokens = prompts.reshape(2, 240, 64)
    assert change(*tokens, np.arange(240))["cka"][0] > 0.4
    assert change(*tokens, np.repeat(np.arange(40), 6))["cka"][0] < 0.2
    huge = rng.normal(size=(2, 40, 64))
    huge[:, :4] += 1000 * rng.normal(size=(2, 1, 64))
    assert change(*huge, np.arange(40))["cka"][0] > 0.99
    assert change(*huge[:, 4:], np.arange(36))["cka"][0] < 0.2


def activations(model, layer, name):
    """Of each prompt's last token by plain hooks: [prompt, d] or, of z, [prompt, head, d]."""
    batch = toy.encoded()
    rows = [int(np.flatnonzero(batch.row_prompt == p)[0]) for p in range(batch.n_prompts)]
    block, _, o, _, _ = oracle.places(model, layer)
    module, end = {"resid_pre": (block, "in"), "resid_post": (block, "out"), "z": (o, "in")}[name]
    text = toy.task().rows["prompt"].tolist()
    last = [len(tiny_tokenizer()(prompt)["input_ids"]) - 1 for prompt in text]
    found = oracle.get(model, torch.as_tensor(batch.ids), module, end)
    found = found.view(*batch.ids.shape, -1)[rows, last].double().numpy()
    return found.reshape(len(rows), 4, -1) if name == "z" else found


def written(model, layer, head):
    """head_out [prompt, d_model]."""
    z, (_, _, o, _, _) = activations(model, layer, "z"), oracle.places(model, layer)
    w = oracle.w_o(o, oracle.z_columns(model, head)).detach().double().numpy()
    return z[:, head] @ w


def test_equals_plain_hugging_face():
    """Catches a token, layer, head or checkpoint mixed up, padding or an answer read, W_O of the
    other checkpoint, prompts out of order."""
    hf_pre, hf_post, inputs = toy.pair()
    found, cluster = drift(inputs), toy.encoded().cluster
    assert found.attrs["n"] == 10 and "32 are wanted" in found.attrs["caveat"]
    assert found.head_shift.dims == ("site", "layer", "head", "prompt")
    np.testing.assert_array_equal(found.cluster, cluster)
    sites = [(dict(depth=0), "resid", (0, "resid_pre"))]
    sites += [(dict(depth=layer + 1), "resid", (layer, "resid_post")) for layer in range(3)]
    cases = [(at, kind, *(activations(m, *w) for m in (hf_pre, hf_post))) for at, kind, w in sites]
    for layer, head in ((0, 3), (2, 1)):
        at = dict(layer=layer, head=head)
        z = [activations(m, layer, "z")[:, head] for m in (hf_pre, hf_post)]
        cases.append((dict(at, site="z"), "head", *z))
        out = [written(m, layer, head) for m in (hf_pre, hf_post)]
        cases.append((dict(at, site="head_out"), "head", *out))
    for at, kind, x, y in cases:
        want = by_hand(x, y, cluster)
        got = {name: found[f"{kind}_{name}"].sel(at) for name in want}
        got["cka"] = got["cka"].sel(bound="value")
        k = int(found[f"{kind}_k"].sel(at))
        got["angle"] = got["angle"][:k]
        if at == dict(depth=0):  # two templates, two last tokens: one direction
            assert k == 1
            want.pop("angle")
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, atol=2e-3, err_msg=f"{at} {name}")


def test_padding_and_other_prompts_change_nothing():
    """Catches a last position taken from the row's end, and activations of padding."""
    _, _, inputs = toy.pair()
    batch = inputs.encoded
    wider = np.concatenate([batch.ids, np.full((batch.n_rows, 9), 7)], 1)
    filled = np.where(np.arange(wider.shape[1]) < batch.length[:, None], wider, 11)
    a, b = drift(inputs), drift(inputs.with_encoded(replace(batch, ids=filled)))
    np.testing.assert_allclose(a.resid_shift, b.resid_shift, atol=1e-5)
    np.testing.assert_allclose(a.head_cka, b.head_cka, atol=1e-3)
    few = drift(inputs.with_encoded(batch.subset(np.arange(3, 9))))
    np.testing.assert_allclose(few.head_shift, a.head_shift[..., 3:9], atol=1e-5)
    tiny = replace(inputs, memory=1e-9)  # one prompt at a time
    np.testing.assert_allclose(drift(tiny).resid_shift, a.resid_shift, atol=1e-5)


def test_drift_starts_where_it_was_planted():
    """Catches layers off by one: an MLP overwritten in layer 1 moves nothing before its output."""
    post = copy.deepcopy(toy.memorised())
    generator = torch.Generator().manual_seed(0)
    for weight in post.model.layers[1].mlp.parameters():
        weight.copy_(weight.std() * torch.randn(weight.shape, generator=generator))
    found = drift(Inputs(toy.pair()[2].pre, toy.opened(post), toy.encoded()))
    assert (found.resid_shift.sel(depth=[0, 1]) == 0).all()
    assert (found.head_shift.sel(layer=[0, 1]) == 0).all()
    assert (found.resid_shift.sel(depth=[2, 3]) > 0.05).all()
    assert (found.head_shift.sel(layer=2) > 0).all()
    value = found.resid_cka.sel(bound="value")
    assert (value[:2] == 1).all() and (value[2:] < 0.99).all()
    assert (found.resid_procrustes[:2].round(9) == 0).all() and found.resid_procrustes[2] > 1e-3


@pytest.mark.parametrize("orthogonal", [True, False])
def test_a_compensated_change_of_a_heads_basis_moves_z_and_not_head_out(orthogonal):
    """Catches head_out made with the other checkpoint's W_O, or z taken for it. CKA doesn't see a
    rotation, and sees a change of basis that isn't one."""
    post, generator = copy.deepcopy(toy.memorised()), torch.Generator().manual_seed(0)
    r, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    if not orthogonal:
        r = r * torch.tensor([4.0, 1, 1, 1, 1, 1, 1, 0.25])
    attention = post.model.layers[1].self_attn
    attention.v_proj.weight[8:16] = r @ attention.v_proj.weight[8:16]
    for head in (2, 3):
        columns = slice(8 * head, 8 * head + 8)
        weight = attention.o_proj.weight
        weight[:, columns] = weight[:, columns] @ torch.linalg.inv(r)
    found = drift(Inputs(toy.pair()[2].pre, toy.opened(post), toy.encoded()))
    z, out = (found.sel(site=s, layer=1, head=[2, 3]) for s in ("z", "head_out"))
    assert (z.head_shift > 0.5).all() and (z.head_angle.max("angle") > 20).all()
    assert (out.head_shift < 1e-4).all() and (out.head_angle.max("angle") < 0.1).all()
    assert ((z.head_cka.sel(bound="value") > 0.999) == orthogonal).all()
    assert (out.head_cka.sel(bound="value") > 0.999).all()
    assert (found.head_shift.sel(layer=1, head=[0, 1]) == 0).all()
    assert (found.resid_shift < 1e-4).all()


class Overflowing:
    """A model whose residual is too large for float16."""

    def __init__(self, model):
        self.model, self.spec, self.device = model, model.spec, model.device

    def run(self, ids, rewrites, parent):
        point = 1, "resid_post"
        keep = rewrites[point]
        return self.model.run(ids, {**rewrites, point: lambda t: keep((t * 1e6).half())}, parent)


def test_overflow_and_short_prompts_are_said():
    """Catches inf that becomes a NaN without a word, and a first token that is taken for a last."""
    _, _, inputs = toy.pair()
    with pytest.raises(
        MeasureError, match=r"^resid_post of layer 1 holds inf or NaN in float16: use f"
    ):
        drift(replace(inputs, post=Overflowing(inputs.post)))
    shortest = int(toy.encoded().prompt_length.min())
    drift(inputs, position=1 - shortest)
    for position in (-shortest, -shortest - 3):
        with pytest.raises(
            MeasureError, match=rf"position {position} of prompt \d+ \({shortest} tok"
        ):
            drift(inputs, position=position)
    with pytest.raises(MeasureError, match="want one from the prompt's end"):
        drift(inputs, position=0)


def test_other_positions():
    """Catches a setting that is ignored."""
    _, _, inputs = toy.pair()
    a, b = drift(inputs), drift(inputs, position=-2)
    assert abs(a.resid_shift - b.resid_shift).min() > 0 and b.attrs["position"] == -2


def test_a_model_against_itself_is_the_control():
    """Catches drift where there is none: of a clean pair everything is exactly still."""
    model = toy.opened(tiny_model("gpt2"))
    found = drift(Inputs(model, model, toy.encoded()))
    assert (found.resid_shift == 0).all() and (found.head_shift == 0).all()
    assert (found.head_cka == 1).all() and found.head_procrustes.max() < 1e-9


def test_a_prompt_with_two_answers_is_one_cluster():
    """Would catch: CKA of pairs that are the same row, as of independent prompts; more clusters
    counted than there are different rows; clusters that are joined through a third one in vain."""
    batch = toy.encoded().subset(np.array([0, 1, 2, 3, 4, 0, 1]))
    batch = replace(batch, cluster=np.array([0, 1, 2, 3, 4, 5, 5]))  # 5 joins 0 and 1
    assert len(np.unique(clusters(batch))) == 4
    assert len(set(clusters(batch)[[0, 1, 5, 6]])) == 1
    _, _, inputs = toy.pair()
    found = drift(inputs.with_encoded(batch))
    want = drift(inputs.with_encoded(replace(batch, cluster=np.array([0, 0, 2, 3, 4, 0, 0]))))
    assert found.n == 4
    np.testing.assert_array_equal(found.resid_cka, want.resid_cka)


def test_rows_are_read_as_memory_allows():
    """Would catch: all prompts in one forward pass whatever the memory, and tokens of a later pass
    given to another row, or of a packed row to another prompt."""
    model, batch = toy.pair()[2].pre, toy.encoded()
    ids, at = prompt_tokens(batch)
    row, position = np.nonzero(np.arange(ids.shape[1]) <= at[:, None])
    rows, run = [], model.run

    def watched(ids, rewrites, parent):
        rows.append(len(ids))
        return run(ids, rewrites, parent)

    point = (2, "resid_post")
    want = read(model, ids, [point], row, position, memory=1.0)[point]
    model.run = watched
    try:
        found = read(model, ids, [point], row, position, memory=2e-4)[point]
    finally:
        del model.run
    assert len(rows) > 1
    torch.testing.assert_close(found, want, atol=1e-5, rtol=0)
