"""A directional derivative taken apart by whose weights move, against plain autograd."""

import numpy as np
import pytest
import torch

from mechforget.errors import SweepError
from mechforget.models.cells import cells
from mechforget.sweeps.shares import shares
from tests.measures import toy
from tests.tiny import FAMILIES, tiny_model

MOE = ("mixtral", "qwen3_moe", "olmoe", "llama4_text", "gpt_oss", "deepseek_v3")


def direction(own, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {p: 0.1 * torch.randn(p.shape, generator=generator) for p in own}


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_cell_against_autograd(family, backend):
    """Would catch: a module whose weights are missed or counted twice (a gate's logits and weights,
    a norm that a wrapper computes, a tied or scaled embedding), rows of another head, an expert
    that takes another's tokens, weights whose gradient is switched on and stays so."""
    model, batch = toy.opened(tiny_model(family), backend), toy.encoded()
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
