"""Grafts against surgery on the weights of a plain copy."""

import copy

import numpy as np
import pytest
import torch

from mechforget.errors import MeasureError, SweepError
from mechforget.measures import Inputs, grafting, grafting_experts, grafting_modules
from mechforget.measures.grafting import graft_parts
from tests import oracle
from tests.measures import toy
from tests.tiny import OTHER_SHAPE, tiny_model

MIXTURES = ("mixtral", "qwen3_moe", "olmoe", "llama4_text", "gpt_oss", "deepseek_v3")
METRICS = ("log_prob", "logit_diff", "correct")


def effect(to, of, mix, direction):
    """direction -> metric -> [prompt], `mix(recipient, donor)` being a plain mixed model."""
    restore = direction == "restore"
    to, of = (to, of) if restore else (of, to)
    base, mixed = toy.plain(to), toy.plain(mix(to, of))
    return {m: (mixed[m] - base[m]) * (1 if restore else -1) for m in METRICS}


def check(found, mix):
    hf_pre, hf_post, _ = toy.pair()
    for direction in ("restore", "break"):
        want = effect(hf_post, hf_pre, mix, direction)
        for metric in METRICS:
            got = found.sel(metric=metric, direction=direction)
            np.testing.assert_allclose(got, want[metric], atol=5e-5, err_msg=metric)


def test_grafts_equal_weight_surgery():
    """Catches a wrong matrix, head, group, sign or donor, and `all` that leaves one out."""
    found = grafting(toy.pair()[2], matrices=("q", "k", "v", "o", "all")).effect
    assert found.dims == ("metric", "direction", "matrix", "layer", "head", "prompt")
    for matrix in ("q", "k", "v", "o", "all"):
        for layer, head in ((0, 1), (1, 2), (2, 3)):
            check(
                found.sel(matrix=matrix, layer=layer, head=head),
                lambda to, of, c=(layer, head, matrix): oracle.grafted(to, of, *c),
            )
    for matrix in "kv":
        np.testing.assert_array_equal(
            found.sel(matrix=matrix, head=2), found.sel(matrix=matrix, head=3)
        )
    assert found.group.values.tolist() == [0, 0, 1, 1] and not found.isnull().all("prompt").any()


def test_only_the_heads_that_were_asked_for_are_grafted():
    """Catches numbers in other cells than their own."""
    inputs = toy.pair()[2]
    some = grafting(inputs, heads={(2, 1), (0, 3)}).effect.sel(matrix="all", metric="log_prob")
    every = grafting(inputs).effect.sel(matrix="all", metric="log_prob")
    given = some.notnull().all(("direction", "prompt")).values
    assert np.argwhere(given).tolist() == [[0, 3], [2, 1]]
    np.testing.assert_allclose(some.values[:, given], every.values[:, given], atol=OTHER_SHAPE)
    with pytest.raises(MeasureError, match="matrices W_Q: want some of q, k, v, o, all"):
        grafting(inputs, matrices=("W_Q",))


def surgery(belongs):
    """A mix by state dict: names that `belongs` come from the donor."""

    def mix(to, of):
        mixed, theirs = copy.deepcopy(to), of.state_dict()
        state = {k: theirs[k] if belongs(k) else v for k, v in mixed.state_dict().items()}
        mixed.load_state_dict(state)
        return mixed

    return mix


def test_modules_equal_surgery_on_the_state_dict():
    """Catches a norm counted as MLP, an embedding left out, weights that don't come back."""
    _hf_pre, _hf_post, inputs = toy.pair()
    found = grafting_modules(inputs)
    for layer in range(3):
        check(found.mlp.sel(layer=layer), surgery(lambda k, at=f".{layer}.mlp.": at in k))
        check(found.block.sel(layer=layer), surgery(lambda k, at=f"layers.{layer}.": at in k))
    check(found.rest, surgery(lambda k: "proj" not in k))
    again = grafting_modules(inputs)  # everything is back where it was
    np.testing.assert_array_equal(found.rest, again.rest)


@pytest.mark.parametrize("family", MIXTURES)
def test_an_experts_graft_equals_surgery(family):
    """Catches another expert's or layer's weights, a bias or half of a fused matrix left behind, the
    donor's routing or stream, and a shared expert that goes along."""
    hf_pre, hf_post = tiny_model(family, 1), tiny_model(family, 0)
    inputs = Inputs(*(toy.opened(m, "nnsight") for m in (hf_pre, hf_post)), toy.encoded())
    found = grafting_experts(inputs).effect
    assert found.dims == ("metric", "direction", "layer", "expert", "prompt")
    layers, experts = found.layer.values.tolist(), found.sizes["expert"]
    moved = 0.0
    for layer, expert in ((layers[0], 1), (layers[-1], experts - 1)):
        for direction, to, of, sign in (
            ("restore", hf_post, hf_pre, 1),
            ("break", hf_pre, hf_post, -1),
        ):
            mixed = copy.deepcopy(to)
            mine, theirs = (oracle.places(m, layer)[4].experts for m in (mixed, of))
            with torch.no_grad():
                for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
                    assert len(p) == experts
                    p[expert] = q[expert]
            want = sign * (toy.plain(mixed)["log_prob"] - toy.plain(to)["log_prob"])
            got = found.sel(metric="log_prob", direction=direction, layer=layer, expert=expert)
            np.testing.assert_allclose(got, want, atol=1e-4)
            moved = max(moved, abs(want).max())
    assert moved > 0.01


def test_experts_are_grafted_where_they_are_shown():
    """Catches zeros for a model without experts, or for one whose backend hides them; and rounding
    shown as an effect."""
    hf_model = tiny_model("mixtral")
    hidden, dense = toy.opened(hf_model), toy.opened(tiny_model())
    for model, family in ((hidden, "mixtral"), (dense, "llama")):
        with pytest.raises(SweepError, match=f"a {family} model has no site 'W_expert'"):
            grafting_experts(Inputs(model, model, toy.encoded()))
    shown = toy.opened(hf_model, "nnsight")
    assert (grafting_experts(Inputs(shown, shown, toy.encoded())).effect.fillna(0) == 0).all()


EVERYTHING = [("attention", None), ("mlp", None), ("rest", None)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "gemma3_text", "gpt_oss"])
def test_grafting_everything_is_the_donor(family):
    """Catches parameters that no part has, also where one matrix holds q, k and v, where weights
    are tied, and for attention sinks; and one layer's attention that isn't all of its heads."""
    hf_pre, hf_post = tiny_model(family, 1), tiny_model(family, 0)
    inputs = Inputs(toy.opened(hf_pre), toy.opened(hf_post), toy.encoded())
    got = graft_parts(inputs, inputs.encoded, [EVERYTHING])[:, :, 0]
    want = toy.plain(hf_pre)["log_prob"] - toy.plain(hf_post)["log_prob"]
    for direction in (0, 1):
        np.testing.assert_allclose(got[0, direction], want, atol=2e-4)
    exact = inputs.encoded.score(*swept(inputs.pre, inputs.encoded))["log_prob"][0]
    base = inputs.encoded.score(*swept(inputs.post, inputs.encoded))["log_prob"][0]
    np.testing.assert_array_equal(got[0, 0], exact - base)  # bit for bit
    one = graft_parts(inputs, inputs.encoded, [[("attention", 1)]])[0, 0, 0]
    mixed = copy.deepcopy(hf_post)
    attention = oracle.places(mixed, 1)[1]
    theirs = oracle.places(hf_pre, 1)[1].state_dict()
    bias = {k for k in theirs if k.endswith(("o_proj.bias", "dense.bias", "sinks"))}
    bias |= {"c_proj.bias"} if family == "gpt2" else set()
    state = attention.state_dict()
    attention.load_state_dict({k: state[k] if k in bias else v for k, v in theirs.items()})
    np.testing.assert_allclose(
        one, toy.plain(mixed)["log_prob"] - toy.plain(hf_post)["log_prob"], atol=2e-4
    )


def swept(model, encoded):
    from mechforget.sweeps.donor import Donor
    from mechforget.sweeps.run import sweep

    return sweep(model, encoded, Donor(model, {}), [])


def test_the_same_model_twice_is_exactly_nothing():
    """Catches rounding shown as an effect."""
    _, _, inputs = toy.pair()
    same = Inputs(inputs.pre, inputs.pre, inputs.encoded)
    for found in (grafting(same, matrices=("all", "k")).effect, grafting_modules(same).mlp):
        assert (found.fillna(0) == 0).all()
    assert torch.is_grad_enabled()
