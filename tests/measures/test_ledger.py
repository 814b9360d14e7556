"""The ledger, against a plain loop on a fine grid, and on pairs whose damage is known."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mechforget.errors import MeasureError
from mechforget.measures import Inputs
from mechforget.measures.attribution import attribution
from mechforget.measures.ledger import by_head, ledger, on_unit_interval, total
from mechforget.measures.origins import origins
from mechforget.sweeps.gradients import gradients
from tests.measures import toy
from tests.tiny import tiny_model


def opened(hf_pre, hf_post, backend="nnsight"):
    return Inputs(toy.opened(hf_pre, backend), toy.opened(hf_post, backend), toy.encoded())


def fine_grid(hf_pre, hf_post, points=64):
    """name -> -∫ ∇log_prob·Δ summed over prompts: midpoints, full gradients, one plain model."""
    batch, model = toy.encoded(), copy.deepcopy(hf_pre).double()
    pre = {n: p.detach().double() for n, p in hf_pre.named_parameters()}
    post = {n: p.detach().double() for n, p in hf_post.named_parameters()}
    found = dict.fromkeys(pre, 0.0)
    right = torch.as_tensor(~batch.read_wrong)
    for i in range(points):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.requires_grad_()
                p.copy_(pre[name] + (i + 0.5) / points * (post[name] - pre[name]))
        logits = model(torch.as_tensor(batch.ids), use_cache=False).logits
        read = logits[batch.read_row, batch.read_position].log_softmax(-1)
        score = read[range(len(batch.read_target)), batch.read_target][right].sum()
        gradients = torch.autograd.grad(score, list(model.parameters()))
        for (name, _), g in zip(model.named_parameters(), gradients, strict=True):
            found[name] -= float((g * (post[name] - pre[name])).sum()) / points
    return found


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_against_a_fine_grid(backend):
    """Would catch: a wrong sign, node or weight, a matrix under another's name, a missing part."""
    hf_pre, hf_post = toy.memorised(), toy.damaged(toy.memorised())
    found = ledger(opened(hf_pre, hf_post, backend))
    score = [toy.plain(m)["log_prob"] for m in (hf_pre, hf_post)]
    np.testing.assert_allclose(found.change, score[0] - score[1], atol=1e-4)
    np.testing.assert_allclose(total(found) + found.gap, found.change, atol=1e-9)
    assert abs(float(found.gap.mean())) <= max(0.01 * float(found.change.mean()), 0.001)
    want = fine_grid(hf_pre, hf_post)
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        for matrix, name in (("W_Q", "self_attn.q_proj"), ("W_O", "self_attn.o_proj")):
            got = float(found["heads"].sel(matrix=matrix, layer=layer).sum())
            assert got == pytest.approx(want[f"{prefix}{name}.weight"], abs=0.05), name
        for matrix, name in (("W_K", "self_attn.k_proj"), ("W_V", "self_attn.v_proj")):
            got = float(found["groups"].sel(kv_matrix=matrix, layer=layer).sum())
            assert got == pytest.approx(want[f"{prefix}{name}.weight"], abs=0.05), name
        for matrix, name in (("W_gate", "gate_proj"), ("W_in", "up_proj"), ("W_out", "down_proj")):
            got = float(found["mlps"].sel(mlp_matrix=matrix, layer=layer).sum())
            assert got == pytest.approx(want[f"{prefix}mlp.{name}.weight"], abs=0.05), name
    embed = float(found["rest"].sel(part="embed").sum())
    assert embed == pytest.approx(want["model.embed_tokens.weight"], abs=0.05)


def test_damage_of_one_head_is_written_there_and_nowhere_else():
    """Would catch: shares that spread; a group's share that not all of its heads get."""
    hf_pre = toy.memorised()
    hf_post = copy.deepcopy(hf_pre)
    with torch.no_grad():
        weight = hf_post.model.layers[1].self_attn.o_proj.weight  # head 2 of 4, 8 wide
        weight[:, 16:24] = weight[:, 16:24].roll(1, 0)
        hf_post.model.layers[2].self_attn.v_proj.weight[8:] *= -1  # group 1: heads 2 and 3
    found = ledger(opened(hf_pre, hf_post))
    heads = by_head(found).sum("prompt")
    touched = np.zeros((3, 4), bool)
    touched[1, 2] = touched[2, 2] = touched[2, 3] = True
    assert (np.abs(heads.values[touched]) > 1e-3).all()
    assert (heads.values[~touched] == 0).all()
    assert float(heads.sel(layer=2, head=2)) == pytest.approx(float(heads.sel(layer=2, head=3)))
    assert float(abs(found["mlps"]).sum() + abs(found["others"]).sum()) == 0
    assert float(by_head(found).sum()) == pytest.approx(
        float(found["heads"].sum() + found["groups"].sum())
    )


def test_a_mixture_holds_its_routing_and_books_the_jump_apart():
    """Would catch: a path along which routing flips (its jump would be nobody's), or a row
    `routing` that isn't what the loss does when post routes for itself."""
    hf_pre = tiny_model("mixtral", 0)
    hf_post = copy.deepcopy(hf_pre)
    with torch.no_grad():
        gate = hf_post.model.layers[1].mlp.gate.weight
        gate.copy_(gate.roll(1, 0))
        hf_post.model.layers[0].mlp.experts.down_proj[2] *= 0.5
    found = ledger(opened(hf_pre, hf_post))
    score = [toy.plain(m)["log_prob"] for m in (hf_pre, hf_post)]
    np.testing.assert_allclose(found.change, score[0] - score[1], atol=1e-4)
    np.testing.assert_allclose(total(found) + found.gap, found.change, atol=1e-9)
    assert float(abs(found.routing).sum()) > 1e-3 and float(abs(found.routers).sum()) == 0
    experts = abs(found["experts"]).sum("prompt")
    assert float(experts.sel(moe_layer=0, expert=2)) > 1e-3
    assert float(experts.sum()) == pytest.approx(float(experts.sel(moe_layer=0, expert=2)))


def test_nodes_and_an_unchanged_pair():
    """Would catch: a quadrature that isn't Gauss-Legendre's (exact to degree 2n - 1), and noise
    where nothing changed."""
    t, weight = on_unit_interval(3)
    assert np.dot(weight, np.array(t) ** 5) == pytest.approx(1 / 6)
    same = tiny_model()
    found = ledger(opened(same, same))
    assert float(abs(found.change).max()) == 0 and float(abs(total(found)).max()) == 0


def test_a_served_model_is_refused():
    """Would catch: a run that finds out after an hour that it can't have the other's weights."""
    served = SimpleNamespace(ask=None)
    with pytest.raises(MeasureError, match="in one place"):
        ledger(Inputs(served, served, toy.encoded()))


def test_origins_of_a_head_add_up_to_its_attribution():
    """Would catch: another head's output, a pull from pre, weights above the head, a wrong sign."""
    _, _, inputs = toy.pair()
    found = origins(inputs, layer=1, head=2)
    want = attribution(inputs).effect.sel(
        metric="log_prob", direction="restore", layer=1, head=2, drop=True
    )
    np.testing.assert_allclose(found.change, want, atol=1e-5)
    np.testing.assert_allclose(total(found) + found.gap, found.change, atol=1e-9)
    assert abs(float(found.gap.mean())) <= max(0.01 * abs(float(found.change.mean())), 0.001)
    assert float(abs(found["heads"].sel(layer=2)).sum()) == 0
    assert float(abs(found["mlps"].sel(layer=[1, 2])).sum()) == 0
    assert float(abs(found["heads"].sel(matrix="W_Q", layer=1)).sum(["prompt"])[2]) > 0
    others = found["heads"].sel(layer=1).drop_sel(head=2)
    assert float(abs(others).sum()) == 0
    with pytest.raises(MeasureError, match="no head L9H0"):
        origins(inputs, layer=9, head=0)


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe"])
def test_origins_quadrature_stops_and_says_what_it_missed(family):
    """Would catch: a routing, or an output bias that is no head's, among what the path must add up
    to: 128 nodes without end, and the quadrature's error booked as routing."""
    hf_pre = tiny_model(family)
    inputs = opened(hf_pre, toy.damaged(hf_pre, 0.1))
    found = origins(inputs, layer=2, head=1)
    want = attribution(inputs).effect.sel(
        metric="log_prob", direction="restore", layer=2, head=1, drop=True
    )
    np.testing.assert_allclose(found.change, want, atol=1e-5)
    np.testing.assert_allclose(total(found) + found.gap, found.change, atol=1e-9)
    assert int(found.nodes[0]) == 8 and 0 < float(abs(found.gap).max()) < 1e-4
    if family == "gpt2":
        return
    post = inputs.post.module  # post's head, at pre's routing, against forward hooks of its own
    recorded, seen = {}, []

    def put(module, args):
        return args[0], *recorded[module]

    pairs = zip(inputs.pre.module.modules(), post.modules(), strict=True)
    experts = [(a, b) for a, b in pairs if type(b).__name__ == "Qwen3MoeExperts"]
    ids = torch.as_tensor(toy.encoded().ids)
    handles = [
        a.register_forward_pre_hook(lambda m, x, b=b: recorded.__setitem__(b, x[1:]))
        for a, b in experts
    ]
    o = post.model.layers[2].self_attn.o_proj
    with torch.no_grad():
        inputs.pre.module(ids, use_cache=False)
        handles.append(o.register_forward_pre_hook(lambda m, x: seen.append(x[0].clone())))
        post(ids, use_cache=False)
        handles += [b.register_forward_pre_hook(put) for _, b in experts]
        post(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    pull = gradients(inputs.post, toy.encoded(), [(2, "attn_raw")]).activations[2, "attn_raw"]
    out = [(z[..., 8:16] @ o.weight[:, 8:16].detach().T * pull).sum((1, 2)).numpy() for z in seen]
    routing = np.bincount(toy.encoded().row_prompt, out[1] - out[0])
    np.testing.assert_allclose(found.routing, routing, atol=1e-5)
    assert abs(routing).max() > 1e-3


def test_an_overflow_is_noticed():
    """Would catch: NaN booked to every head, after 128 nodes of it."""
    inputs = opened(tiny_model(seed=0), tiny_model(seed=1))
    with torch.no_grad():
        inputs.post.module.model.layers[1].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(MeasureError, match="use float32"):
        ledger(inputs)
