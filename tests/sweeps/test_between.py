"""Weights on the straight line between two checkpoints."""

import pytest
import torch

from mechforget.sweeps.weights import between
from tests.measures import toy
from tests.tiny import tiny_model


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_the_line_between_two_models(backend, t):
    """Would catch: a wrong end, an end that is only nearly the checkpoint, weights that don't
    reach the forward pass (a backend's own copy), and weights that stay changed."""
    pre, post = (tiny_model("gpt2", seed) for seed in (0, 1))
    mixed = tiny_model("gpt2", 0)
    with torch.no_grad():
        for p, q in zip(mixed.parameters(), post.parameters(), strict=True):
            p.copy_(p * (1 - t) + q * t)
    ids = torch.as_tensor(toy.encoded().ids)
    a, b = (toy.opened(m, backend) for m in (pre, post))
    before = a.run(ids, {})
    with between(a, b, t), torch.no_grad():
        got = a.run(ids, {})
    with torch.no_grad():
        want = mixed(ids).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    assert t or torch.equal(got, before)
    assert t < 1 or torch.equal(got, b.run(ids, {}))
    assert torch.equal(a.run(ids, {}), before)
