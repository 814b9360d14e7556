"""Routing against hooks on the gates of plain Hugging Face models, scipy, and planted damage."""

import contextlib
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.spatial.distance import jensenshannon
from scipy.special import expit, softmax
from scipy.stats import entropy

from mechforget.errors import MeasureError
from mechforget.measures import Inputs, patching, routing, routing_restored
from mechforget.measures.routing import angle, decisions, divergence
from mechforget.sweeps.reads import gates
from tests import oracle
from tests.measures import toy
from tests.tiny import OTHER_SHAPE, tiny_model

MIXTURES = ("mixtral", "qwen3_moe", "olmoe", "llama4_text", "gpt_oss", "deepseek_v3")
SIGMOID = ("llama4_text", "deepseek_v3")


def layers(model):
    """The layers that are mixtures, by the plain model's own modules."""
    return [i for i in range(3) if hasattr(oracle.places(model, i)[4], "experts")]


def gate(model, layer):
    mixture = oracle.places(model, layer)[4]
    return mixture.gate if hasattr(mixture, "gate") else mixture.router


def logits(model, layer, ids):
    """[row, position, expert]: the gate's own product with what it is given."""
    module, found = gate(model, layer), []
    handle = module.register_forward_pre_hook(lambda m, args: found.append(args[0].clone()))
    oracle.run(model, ids)
    handle.remove()
    out = found[0].reshape(*ids.shape, -1).double() @ module.weight.double().T
    bias = getattr(module, "bias", None)
    return (out if bias is None else out + bias.double()).detach().numpy()


def chosen(model, layer, ids):
    """[row, position, slot], as the plain model calls its experts."""
    mixture = oracle.experts(model, layer)
    if oracle.is_llama4(model):
        return torch.topk(torch.as_tensor(logits(model, layer, ids)), 1).indices.numpy()
    return oracle.routing(model, ids, mixture)[0].reshape(*ids.shape, -1).numpy()


def pair(family):
    hf_pre, hf_post = (tiny_model(family, seed) for seed in (1, 0))
    if family == "deepseek_v3":
        for i, model in enumerate((hf_pre, hf_post)):
            for layer in layers(model):
                bias = gate(model, layer).e_score_correction_bias
                bias.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0]).roll(i))
    return hf_pre, hf_post


def opened(*models):
    return Inputs(*(toy.opened(m, "nnsight") for m in models), toy.encoded())


def rows():
    batch = toy.encoded()
    return [int(np.flatnonzero(batch.row_prompt == p)[0]) for p in range(batch.n_prompts)]


@pytest.mark.parametrize("family", MIXTURES)
def test_every_number_is_what_plain_hooks_and_scipy_give(family):
    """Catches masked scores taken for logits, natural logs, padding or position 0 that counts, a
    rule that isn't the family's, experts in another order, prompts out of order."""
    hf_pre, hf_post = pair(family)
    batch, inputs = toy.encoded(), opened(hf_pre, hf_post)
    ids = torch.as_tensor(batch.ids)
    found = routing(Inputs(inputs.pre, inputs.post, batch, memory=2e-3))
    rule = "sigmoid" if family in SIGMOID else "softmax"
    assert found.attrs["rule"] == rule and found.layer.values.tolist() == layers(hf_pre)
    experts = found.sizes["expert"]
    for layer in layers(hf_pre):
        p, q = (logits(m, layer, ids) for m in (hf_pre, hf_post))
        a, b = (chosen(m, layer, ids) for m in (hf_pre, hf_post))
        count = np.zeros((2, experts))
        for prompt, row in enumerate(rows()):
            each, same = [], []
            for at in range(1, batch.length[row]):
                x, y = p[row, at], q[row, at]
                if rule == "softmax":
                    each.append(jensenshannon(softmax(x), softmax(y), base=2) ** 2)
                else:
                    coins = [[(s, 1 - s) for s in expit(z)] for z in (x, y)]
                    each.append(
                        np.mean(
                            [jensenshannon(u, v, base=2) ** 2 for u, v in zip(*coins, strict=True)]
                        )
                    )
                one, two = set(a[row, at].tolist()), set(b[row, at].tolist())
                same.append(len(one & two) / len(one))
                here = found.switched.sel(layer=layer, prompt=prompt, position=at)
                assert here == len(two - one)
                for side, experts_ in enumerate((one, two)):
                    for e in experts_:
                        count[side, e] += 1
            got = found.sel(layer=layer, prompt=prompt)
            np.testing.assert_allclose(got.js, np.mean(each), atol=2e-5)
            np.testing.assert_allclose(got.overlap, np.mean(same))
            beyond = got.switched.values[batch.length[row] :]
            assert np.isnan(got.switched[0]) and np.isnan(beyond).all()
        load = count / count.sum(1, keepdims=True)
        got = found.sel(layer=layer)
        np.testing.assert_allclose(got.choices.sum("prompt"), count)
        np.testing.assert_allclose(got.expert_load, load)
        np.testing.assert_allclose(got.load_js, jensenshannon(*load, base=2) ** 2, atol=1e-12)
        np.testing.assert_allclose(got.load_entropy, [entropy(x, base=2) for x in load])
        u, v = (gate(m, layer).weight.detach().double().numpy() for m in (hf_pre, hf_post))
        cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
        np.testing.assert_allclose(got.angle, np.degrees(np.arccos(cosine)))
    assert found.js.max() > 1e-3 and found.overlap.min() < 1


@pytest.mark.parametrize("family", MIXTURES)
def test_the_recorded_experts_are_the_top_of_the_gates_logits(family):
    """Catches a point `gate` that is another module's output, or read at another time."""
    hf_model, _ = pair(family)
    model, batch = toy.opened(hf_model, "nnsight"), toy.encoded()
    found = decisions(model, batch)
    assert found["gate"].shape[:2] == (len(layers(hf_model)), batch.n_prompts)
    k = found["chosen"].shape[-1]
    for index, layer in enumerate(layers(hf_model)):
        score = found["gate"][index]
        if family == "deepseek_v3":
            score = expit(score) + gate(hf_model, layer).e_score_correction_bias.numpy()
            groups = score.reshape(*score.shape[:-1], 2, 2)
            best = groups.sum(-1).argmax(-1)[..., None, None]  # the two best of two
            allowed = np.arange(2)[:, None] == best
            score = np.where(allowed, groups, -np.inf).reshape(score.shape)
        top = np.sort(np.argsort(-score, axis=-1)[..., :k], axis=-1)
        np.testing.assert_array_equal(np.sort(found["chosen"][index], -1), top)
        want = gate(hf_model, layer).weight.detach().double().numpy()
        np.testing.assert_array_equal(gates(model)[index], want)


def redirected(model, layer=1):
    """A copy whose gate sends to each expert what another one got."""
    post = copy.deepcopy(model)
    with torch.no_grad():
        weight = gate(post, layer).weight
        weight.copy_(weight[torch.tensor([1, 2, 3, 0])])
    return post


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_a_redirected_gate_is_found_and_restoring_it_gives_back_what_it_took(family):
    """Catches change that is seen upstream of the damage, and routing that is restored in part."""
    hf_pre = tiny_model(family)
    hf_post = redirected(hf_pre)
    inputs = opened(hf_pre, hf_post)
    found = routing(inputs)
    assert (found.js.sel(layer=1) > 0).all() and (found.overlap.sel(layer=1) < 1).all()
    assert (found.angle.sel(layer=1) > 1).all()
    others = [layer for layer in layers(hf_pre) if layer != 1]
    assert (found.angle.sel(layer=others) == 0).all()
    for layer in (i for i in others if i < 1):
        got = found.sel(layer=layer)
        assert (got.js == 0).all() and (got.overlap == 1).all() and got.load_js == 0
        assert np.nansum(got.switched) == 0
    took = toy.plain(hf_pre)["log_prob"] - toy.plain(hf_post)["log_prob"]
    assert abs(took).max() > 0.1
    restored = routing_restored(inputs).sel(metric="log_prob")
    for direction in ("restore", "break"):
        got = restored.sel(direction=direction)
        np.testing.assert_allclose(got.every, took, atol=1e-4)
        np.testing.assert_allclose(got.effect.sel(layer=1), took, atol=1e-4)
        assert (got.effect.sel(layer=[i for i in others if i < 1]) == 0).all()


def test_a_clean_pair_gives_zeros():
    """Catches rounding, batching or chunking shown as routing that changed."""
    hf_pre = tiny_model("qwen3_moe")
    inputs = opened(hf_pre, hf_pre)
    found, restored = routing(inputs), routing_restored(inputs)
    assert (found.js == 0).all() and (found.overlap == 1).all() and (found.angle == 0).all()
    assert (found.load_js == 0).all() and np.nansum(found.switched) == 0
    assert (restored.every.sel(metric="log_prob") == 0).all()
    assert (restored.effect.sel(metric="log_prob") == 0).all()


def everywhere(recipient, donor, ids):
    """Logits with the donor's experts and weights in every layer at once, by plain hooks."""
    given = [oracle.experts(donor, layer) for layer in layers(donor)]
    decided = [oracle.routing(donor, ids, mixture) for mixture in given]
    with contextlib.ExitStack() as stack:
        for layer, decision in zip(layers(recipient), decided, strict=True):
            module, router = oracle.experts(recipient, layer)
            if router is not None:
                hook = router.register_forward_hook(lambda m, a, out, d=decision: (d, out[1]))
            else:
                hook = module.register_forward_pre_hook(
                    lambda m, a, kw, d=decision: (([*a, *kw.values()][0], *d), {}),
                    with_kwargs=True,
                )
            stack.callback(hook.remove)
        return oracle.run(recipient, ids)


@pytest.mark.parametrize("family", MIXTURES)
def test_restoring_all_routing_is_what_plain_hooks_give(family):
    """Catches layers restored one by one and added up, directions swapped, weights left behind."""
    hf_pre, hf_post = pair(family)
    inputs, ids = opened(hf_pre, hf_post), torch.as_tensor(toy.encoded().ids)
    found = routing_restored(inputs)
    restored = toy.scores(everywhere(hf_post, hf_pre, ids))
    broken = toy.scores(everywhere(hf_pre, hf_post, ids))
    pre, post = toy.plain(hf_pre), toy.plain(hf_post)
    for metric in ("log_prob", "logit_diff"):
        got = found.every.sel(metric=metric)
        largest = max(1, np.nanmax(abs(pre[metric])))
        np.testing.assert_allclose(
            got.sel(direction="restore"), restored[metric] - post[metric], atol=2e-5 * largest
        )
        np.testing.assert_allclose(
            got.sel(direction="break"), pre[metric] - broken[metric], atol=2e-5 * largest
        )
    alone = patching(inputs, site="router").effect  # without the rows of `every` beside it
    xr.testing.assert_allclose(found.effect, alone, atol=OTHER_SHAPE)


def test_closed_forms():
    """Catches bits that aren't bits, a mean that is a sum, an angle by arc cosine."""
    sure, other = np.array([50.0, -50, -50]), np.array([-50.0, 50, -50])
    assert divergence(sure, other, "softmax") == pytest.approx(1)
    assert divergence(sure, other, "sigmoid") == pytest.approx(2 / 3)  # the third is sure twice
    assert divergence(sure, sure + 7, "softmax") == pytest.approx(0, abs=1e-12)  # but not the coins
    assert divergence(sure * 0, sure * 0 + 1, "sigmoid") > 0.01
    rows = np.array([[1.0, 0], [1, 0], [1, 0], [2, 0]])
    turned = np.array([[0.0, 3], [-1, 0], [np.cos(1e-9), np.sin(1e-9)], [5, 0]])
    np.testing.assert_allclose(angle(rows, turned), [90, 180, np.degrees(1e-9), 0], rtol=1e-6)


def test_what_shows_no_routing_is_refused():
    """Catches numbers of a dense model, of a backend without routing, and of another gate."""
    hf_model = tiny_model("mixtral")
    dense = Inputs(*(toy.opened(toy.memorised()) for _ in range(2)), toy.encoded())
    hidden = Inputs(*(toy.opened(hf_model) for _ in range(2)), toy.encoded())
    for inputs in (dense, hidden):
        for measure in (routing, routing_restored):
            with pytest.raises(MeasureError, match="want a mixture of experts on backend nnsight"):
                measure(inputs)
    inputs = opened(hf_model, hf_model)
    inputs.post.modules.layers[1].at["gate"] = (inputs.post.modules.layers[0].gate, "out")
    with pytest.raises(
        MeasureError, match="neither a softmax nor a sigmoid of their gate's logits"
    ):
        routing(inputs)


def test_a_run_that_was_cut_off_still_knows_the_rule():
    """Would catch: no rule where every chunk was finished by an earlier run."""

    chunks = []
    kept = SimpleNamespace(finished=chunks.copy, add=chunks.append)
    model = toy.opened(tiny_model("qwen3_moe"), "nnsight")
    inputs = Inputs(model, model, toy.encoded().subset(np.arange(3)), keep=lambda name: kept)
    assert [routing(inputs).attrs["rule"] for _ in range(2)] == ["softmax"] * 2
