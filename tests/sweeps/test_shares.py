"""A directional derivative taken apart by whose weights move, against plain autograd."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mechforget.errors import SweepError
from mechforget.models.cells import cells
from mechforget.sweeps.shares import shares
from mechforget.sweeps.weights import between
from tests.measures import toy
from tests.models.test_other_families import OTHERS
from tests.tiny import FAMILIES, VOCAB, tiny_model

MOE = ("mixtral", "qwen3_moe", "olmoe", "llama4_text", "gpt_oss", "deepseek_v3")
FALCON = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)


ODD = ("bloom", "falcon", "gptj", "mpt", "opt", "starcoder2")  # modules of their own kinds


def of_family(family):
    """A tiny model of a family of `FAMILIES`, or of `ODD`."""
    if family in FAMILIES:
        return tiny_model(family)
    config = AutoConfig.for_model(family, **{"falcon": FALCON, **OTHERS}[family])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return model


def direction(own, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {p: 0.1 * torch.randn(p.shape, generator=generator) for p in own}


@pytest.mark.parametrize(
    ("family", "backend"),
    [(f, b) for f in sorted(FAMILIES) for b in ("transformer_lens", "nnsight")]
    + [(f, "nnsight") for f in ODD],
)
def test_every_cell_against_autograd(family, backend):
    """Would catch: a module whose weights are missed or counted twice (a gate's logits and weights,
    a norm that a wrapper computes, a tied or scaled embedding), rows of another head, an expert
    that takes another's tokens, weights whose gradient is switched on and stays so; a linear layer
    of the family's own (Falcon) whose heads all get all of W_O, positions that aren't ids (OPT)."""
    model, batch = toy.opened(of_family(family), backend), toy.encoded()
    if family in MOE and backend == "transformer_lens":
        with pytest.raises(SweepError, match="use nnsight"):
            cells(model)
        return
    own = cells(model)
    step = direction(own)
    before = [p.requires_grad for p in own]
    found, log_prob = shares(model, batch, step, own)
    assert [p.requires_grad for p in own] == before and not any(p.grad is not None for p in own)
    for p in own:
        p.requires_grad_()
    logits = model.run(torch.as_tensor(batch.ids), {})[batch.read_row, batch.read_position]
    want = logits.log_softmax(-1)[range(len(batch.read_target)), batch.read_target]
    score = batch.score(want.detach().numpy(), np.zeros(len(want), bool))["log_prob"]
    np.testing.assert_allclose(log_prob, score, atol=1e-4)
    right = want[torch.as_tensor(~batch.read_wrong)].sum()
    gradients = torch.autograd.grad(right, list(own), allow_unused=True)
    wanted = {}
    for (p, mine), g in zip(own.items(), gradients, strict=True):
        product = torch.zeros(p.shape) if g is None else (g * step[p]).double()
        for cell in mine:
            rows = torch.arange(p.shape[0]) if cell.rows is None else cell.rows
            part = product[rows] if cell.cols is None else product[rows[:, None], cell.cols]
            key = (cell.part, cell.layer, cell.unit)
            wanted[key] = wanted.get(key, 0) + part.sum().item()
    for key, value in wanted.items():
        got = found.get(key, np.zeros(1)).sum()
        assert got == pytest.approx(value, abs=2e-5), key


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "llama4_text"])
def test_experts_see_the_routing_that_is_held(family):
    """Would catch: experts' shares by the routing that the model itself would choose there, where a
    rewrite gave them another. Against autograd of the same forward, halfway between two models."""
    hf_pre = tiny_model(family).double()
    hf_pre.config._experts_implementation = "eager"  # the grouped ones want float32
    hf_post = toy.damaged(hf_pre, 0.3)
    pre, post = toy.opened(hf_pre, "nnsight"), toy.opened(hf_post, "nnsight")
    batch, own, generator = toy.encoded(), cells(pre), torch.Generator().manual_seed(2)
    held, read = {}, (batch.read_row, batch.read_position)
    for layer in pre.spec.moe:  # each token goes to experts drawn for it
        noise = torch.rand(*batch.ids.shape, 4, generator=generator)
        weight, index = noise.topk(pre.module.config.num_experts_per_tok)
        new = torch.stack([index, weight], -1)
        held[layer, "router"] = lambda t, new=new: new
    step = {p: q.detach() - p.detach() for p, q in zip(own, cells(post), strict=True)}
    with between(pre, post, 0.5):
        found, _ = shares(pre, batch, step, own, rewrites=held)
        for p in own:
            p.requires_grad_()
        logits = pre.run(torch.as_tensor(batch.ids), held)[read].log_softmax(-1)
        right = logits[range(len(batch.read_target)), batch.read_target][~batch.read_wrong].sum()
        made = torch.autograd.grad(right, list(own), allow_unused=True)
    want = {}
    for (p, mine), g in zip(own.items(), made, strict=True):
        if mine[0].part == "expert" and g is not None:
            for cell in mine:
                key = ("expert", cell.layer, cell.unit)
                part = (g * step[p])[cell.unit].sum().item()
                want[key] = want.get(key, 0) + part
    assert len(want) == 4 * len(pre.spec.moe)
    for key, value in want.items():
        assert found[key].sum() == pytest.approx(value, rel=1e-5, abs=1e-7), key


def test_prompts_are_told_apart():
    """Would catch: shares given to the wrong prompt. Against central differences of each prompt's
    own log p, in float64."""
    model, batch = toy.opened(tiny_model("gpt2").double(), "nnsight"), toy.encoded()
    own = cells(model)
    step = {p: t.double() for p, t in direction(own).items()}
    found, _ = shares(model, batch, step, own)
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, t in step.items():
                p.add_(sign * 1e-5 * t)
            sides.append(toy.scores(model.run(torch.as_tensor(batch.ids), {}))["log_prob"])
            for p, t in step.items():
                p.sub_(sign * 1e-5 * t)
    want = (sides[0] - sides[1]) / 2e-5
    np.testing.assert_allclose(sum(found.values()), want, rtol=1e-6, atol=1e-6)


def test_padding_changes_nothing():
    """Would catch: gradients that leak into, or out of, positions behind a row's end."""
    model, batch = toy.opened(tiny_model(), "nnsight"), toy.encoded()
    own = cells(model)
    whole, _ = shares(model, batch, direction(own), own)
    for prompt in (0, 3):
        alone, _ = shares(model, batch.subset(np.array([prompt])), direction(own), own)
        for key, value in alone.items():
            assert value[0] == pytest.approx(whole[key][prompt], abs=1e-5), key
