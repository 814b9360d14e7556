"""Contributions to the logit difference: against plain hooks, with the final norm taken apart by
hand (which every family's are compared with in tests/test_agreement.py)."""

import numpy as np
import pytest
import torch

from mechforget.errors import MeasureError
from mechforget.measures import Inputs, logit_attribution
from mechforget.models.opening import proven
from mechforget.sweeps.direct import frozen
from tests import oracle
from tests.measures import toy
from tests.tiny import tiny_model

FINAL = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
FINAL |= {"phi": "model.final_layernorm"}


def first_difference(prompt):
    """(row, position, right token, wrong token), or None, by walking along the two answers."""
    batch = toy.encoded()
    right, wrong = (
        [
            (batch.read_row[i], batch.read_position[i], batch.read_target[i])
            for i in np.flatnonzero((batch.read_prompt == prompt) & (batch.read_wrong == is_wrong))
        ]
        for is_wrong in (False, True)
    )
    for (row, position, a), (_, _, b) in zip(right, wrong, strict=False):
        if a != b:
            return row, position, a, b
    return None


def linear(norm, at, v):
    """A norm's linear part with its scale as at `at`, applied to v, in double."""
    gain, at, v = norm.weight.double(), at.double(), v.double()
    if isinstance(norm, torch.nn.LayerNorm):
        scale = (at.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        return gain * (v - v.mean(-1, keepdim=True)) / scale
    gain = 1 + gain if "Gemma" in type(norm).__name__ else gain
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    return gain * v / ((at * at).mean(-1, keepdim=True) + eps).sqrt()


def by_hand(hf_model):
    """prompt -> {heads [layer, head], mlps [layer], embed, rest, logit_diff} by plain hooks."""
    ids = torch.as_tensor(toy.encoded().ids)
    family = hf_model.config.model_type
    norm = hf_model.get_submodule(FINAL.get(family, "model.norm"))
    head = hf_model.get_output_embeddings()
    taken, hooks = {}, []

    def keep(name, module, end):
        # Llama 4's mixture gives its tokens flat.
        hooks.append(
            (module, end, lambda t: taken.__setitem__(name, t.clone().view(*ids.shape, -1)))
        )

    keep("final", norm, "in")
    keep("raw", head, "out")
    for layer in range(3):
        block, _, o, _, mlp_out = oracle.places(hf_model, layer)
        keep(("embed", layer), block, "in")
        keep(("z", layer), o, "in")
        keep(("o", layer), o, "out")
        keep(("mlp", layer), mlp_out, "out")
    oracle.run(hf_model, ids, hooks)
    found = {}
    for prompt in range(toy.encoded().n_prompts):
        if (where := first_difference(prompt)) is None:
            continue
        row, position, right, wrong = where
        at = {name: t[row, position].double() for name, t in taken.items()}
        direction = (head.weight[right] - head.weight[wrong]).double()

        def share(v, at=at, direction=direction):
            return (linear(norm, at["final"], v) @ direction).item()

        heads, constants = np.zeros((3, 4)), 0.0
        for layer in range(3):
            o = oracle.places(hf_model, layer)[2]
            post = None
            if family in oracle.POST_NORMS:
                post = oracle.places(hf_model, layer)[3]

            def write(v, post=post, at=at, layer=layer):
                return v if post is None else linear(post, at["o", layer], v)

            for h in range(4):
                columns = oracle.z_columns(hf_model, h)
                v = at["z", layer][columns] @ oracle.w_o(o, columns).double()
                heads[layer, h] = share(write(v))
            if o.bias is not None:
                constants += share(write(o.bias.double()))
        if getattr(norm, "bias", None) is not None:
            constants += (norm.bias.double() @ direction).item()
        if head.bias is not None:
            constants += (head.bias[right] - head.bias[wrong]).item()
        found[prompt] = {
            "heads": heads,
            "mlps": np.array([share(at["mlp", layer]) for layer in range(3)]),
            "embed": share(at["embed", 0]),
            "rest": constants,
            "logit_diff": (at["raw"][right] - at["raw"][wrong]).item(),
        }
    return found


def test_taking_a_head_out_of_the_last_layers_stream_changes_what_it_contributed():
    """Catches a contribution that is no intervention's: the residual without the head, through the
    norm with its scale held, really gives that much less."""
    hf_pre, _, inputs = toy.pair()
    found = logit_attribution(inputs).sel(at="pre")
    ids = torch.as_tensor(toy.encoded().ids)
    norm, head = hf_pre.model.norm, hf_pre.lm_head
    final = oracle.get(hf_pre, ids, norm, "in")
    scale = norm(final) / (final * norm.weight)
    base = oracle.get(hf_pre, ids, head, "out")
    for layer, h in ((0, 1), (2, 2)):
        o = oracle.places(hf_pre, layer)[2]
        z = oracle.get(hf_pre, ids, o, "in")
        zeroed = torch.zeros_like(z)
        zeroed[..., oracle.z_columns(hf_pre, h)] = z[..., oracle.z_columns(hf_pre, h)]
        without = head((final - o(zeroed)) * norm.weight * scale)
        told = [p for p in range(14) if first_difference(p)]
        for prompt in told[::3]:
            row, position, right, wrong = first_difference(prompt)
            lost = (base - without)[row, position]
            want = (lost[right] - lost[wrong]).item()
            got = found.heads.sel(layer=layer, head=h, prompt=prompt)
            np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("width", [32, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_is_taken_apart_whatever_its_input(width, dtype):
    """Catches an RMS norm taken for a centring one when one value of the stream is huge, as in
    real models, and a probe that low precision or an odd width confuses."""
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 5, width, generator=generator).to(dtype)
    x[:, 3] = 2e4
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for norm in (torch.nn.RMSNorm(width), torch.nn.LayerNorm(width)):
        with torch.no_grad():
            for p in norm.parameters():
                p.copy_(torch.randn(width, generator=generator))
            norm = norm.to(dtype)
            back, constant = frozen(norm, x)
            want = ((norm(x) - constant).double() * v.double()).sum(-1)
            got = (back(v).double() * x.double()).sum(-1)
        np.testing.assert_allclose(got, want, atol=tolerance * want.abs().max().item())
        bias = getattr(norm, "bias", None)
        assert (constant == (0 if bias is None else bias)).all()


def test_parts_add_up_in_halves():
    """Catches sums in eight bits, which lose what the parts are wanted for."""
    model = proven(tiny_model("gemma2").to(torch.bfloat16), "nnsight")
    found = logit_attribution(Inputs(model, model, toy.encoded()))
    parts = found.heads.sum(("layer", "head")) + found.mlps.sum("layer") + found.embed + found.rest
    np.testing.assert_allclose(parts, found.logit_diff, atol=1e-4)


def test_prompts_without_a_wrong_answer_are_empty_however_they_are_chunked():
    """Catches a chunk in which no prompt has one."""
    inputs = toy.pair()[2]
    alone = [p for p in range(14) if not first_difference(p)][:2]
    found = logit_attribution(inputs.with_encoded(toy.encoded().subset(np.array(alone))))
    assert found.heads.shape == (2, 2, 3, 4)
    assert all(found[name].isnull().all() for name in found.data_vars)


def test_a_stream_that_is_no_sum_is_refused():
    """Catches contributions of something that doesn't add up."""
    model = toy.opened(tiny_model())
    object.__setattr__(model.spec, "residual_scale", None)
    with pytest.raises(MeasureError, match="the residual stream of a llama model is not the sum"):
        logit_attribution(Inputs(model, model, toy.encoded()))
