"""Attribution patching: against the exact sweep where changes are small, and where it must fail."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import spearmanr

from mechforget import measures
from mechforget.errors import MeasureError
from mechforget.measures import Inputs
from mechforget.measures.attribution import attribution, screened
from tests.measures import toy
from tests.tiny import OTHER_SHAPE, tiny_model


def near(family="llama", amount=1e-3, seed=3, backend="nnsight"):
    """A pair so close that first order is nearly all there is."""
    pre = tiny_model(family).double()
    post, generator = copy.deepcopy(pre), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for w in post.parameters():
            w.add_(amount * w.std() * torch.randn(w.shape, generator=generator))
    return Inputs(*(toy.opened(m, backend) for m in (pre, post)), toy.encoded())


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_small_changes_are_what_the_exact_sweep_finds(family, backend):
    """Would catch: a wrong sign, direction, head, group or gradient point, for every site and
    method: to first order they all agree with patching."""
    inputs = near(family, backend=backend)
    for site in ("head_out", "z", "q", "k", "v", "attn_out", "mlp_out", "resid_pre"):
        exact = measures.patching(inputs, site=site).effect.sel(metric=["log_prob", "logit_diff"])
        scale = float(abs(exact).max())
        methods = [
            "gradient",
            *(["softmax"] if site in "qk" else []),
            *(["integrated"] if site in ("head_out", "z", "mlp_out") else []),
        ]
        for method in methods:
            found = attribution(inputs, site=site, method=method, steps=2).effect
            assert found.dims == exact.dims
            np.testing.assert_allclose(found, exact, atol=0.02 * scale, err_msg=f"{site} {method}")


def saturated():
    """Layer 1's head 0 looks at one key with all its weight, before and, at another, after."""
    pre = tiny_model().double()
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            getattr(pre.model.layers[1].self_attn, name).weight.mul_(12)
    post, generator = copy.deepcopy(pre), torch.Generator().manual_seed(3)
    with torch.no_grad():
        w = post.model.layers[1].self_attn.q_proj.weight
        w.copy_(w.std() * torch.randn(w.shape, generator=generator))
    return Inputs(*(toy.opened(m, "nnsight") for m in (pre, post)), toy.encoded())


def test_a_saturated_softmax_fools_the_gradient_and_not_softmax():
    """Would catch: AtP* that is only the gradient again; and it shows the trap that it is for."""
    inputs = saturated()
    exact = measures.patching(inputs, site="q").effect.sel(metric="log_prob", layer=1)
    wrong = {
        method: float(
            abs(
                attribution(inputs, site="q", method=method).effect.sel(metric="log_prob", layer=1)
                - exact
            ).mean()
        )
        for method in ("gradient", "softmax")
    }
    size = float(abs(exact).mean())
    assert wrong["gradient"] > 0.5 * size
    assert wrong["softmax"] < 0.6 * wrong["gradient"]


def test_ranks_heads_like_the_exact_sweep_and_integration_is_nearer():
    """Would catch: a screen that would send the wrong heads to be confirmed."""
    _, _, inputs = toy.pair()
    exact = measures.patching(inputs).effect.sel(metric="log_prob").mean("prompt")
    off = {}
    for method in ("gradient", "integrated"):
        found = attribution(inputs, method=method).effect.sel(metric="log_prob").mean("prompt")
        assert spearmanr(found.values.ravel(), exact.values.ravel())[0] > 0.6, method
        off[method] = float(abs(found - exact).mean())
    assert off["integrated"] < off["gradient"]


def test_unchanged_layers_get_zero_and_wrong_methods_a_line():
    """Would catch: an effect without a difference; a method that doesn't exist for a site."""
    same = toy.opened(tiny_model(), "nnsight")
    found = attribution(Inputs(same, same, toy.encoded()))
    values = found.effect.values
    assert np.nanmax(abs(values)) == 0
    for site, method in (("pattern", "gradient"), ("z", "softmax"), ("z", "magic")):
        with pytest.raises(MeasureError, match="want gradient or integrated"):
            attribution(Inputs(same, same, toy.encoded()), site=site, method=method)


def test_chosen_heads_are_patched_as_in_the_whole_sweep():
    """Would catch: a screen whose confirmed effects are other heads', or that runs them all."""
    _, _, inputs = toy.pair()
    few = screened(attribution(inputs), 3)
    whole, some = measures.patching(inputs).effect, measures.patching(inputs, heads=few).effect
    run = np.zeros((3, 4), bool)
    run[tuple(zip(*few, strict=True))] = True
    there = np.isfinite(some.sel(metric="log_prob", direction="restore")).all("prompt")
    np.testing.assert_array_equal(there.values, run)
    np.testing.assert_allclose(some.where(there), whole.where(there), atol=OTHER_SHAPE)
    with pytest.raises(MeasureError, match="heads can be chosen"):
        measures.patching(inputs, site="k", heads=few)


def test_a_screen_keeps_the_first_of_either_direction():
    """Would catch: a ranking by size, where the direction with small effects gets no place."""
    restore = np.linspace(100, 200, 12)
    effect = np.stack([restore, -np.linspace(2, 1, 12)]).reshape(1, 2, 3, 4, 1)
    found = xr.Dataset(
        {"effect": (("metric", "direction", "layer", "head", "prompt"), effect)},
        {"metric": ["log_prob"], "direction": ["restore", "break"]},
    )
    assert set(screened(found, 4)) == {(2, 3), (2, 2), (0, 0), (0, 1)}
