"""Two models, one storage for what is alike. Oracle: the bytes of distinct storages."""

from typing import Any

import pytest
import torch

from mechforget import checkpoints
from mechforget.errors import CheckpointError
from tests.tiny import tiny_model


def storage(*models) -> int:
    """Bytes that the models' parameters occupy, each storage once."""
    found = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
        for m in models
        for p in m.parameters()
    }
    return sum(found.values())


def test_two_in_the_memory_of_one(tiny, adapter):
    """Would catch parameters that stay copies, and one that is shared though it differs."""
    pre, post = checkpoints.open(tiny()).load(), checkpoints.open(adapter).load()
    want = post(torch.arange(9)[None]).logits
    one, both = storage(pre), storage(pre, post)
    assert both >= 2 * one * 0.99
    differ = checkpoints.share(pre, post)
    assert differ == [
        f"model.layers.{layer}.self_attn.{matrix}_proj.weight"
        for layer in range(3)
        for matrix in "qv"
    ]
    own = sum(post.get_parameter(name).nbytes for name in differ)
    assert storage(pre, post) == one + own
    assert torch.equal(post(torch.arange(9)[None]).logits, want)
    for name, parameter in post.named_parameters():
        assert (parameter.data_ptr() == pre.get_parameter(name).data_ptr()) == (name not in differ)


def test_bits_decide(tiny):
    """Would catch == in their place: -0.0 == 0.0, and one value in a large matrix."""
    pre, post = tiny_model(), tiny_model()
    with torch.no_grad():
        pre.model.norm.weight[0] = 0.0
        post.model.norm.weight[0] = -0.0
        post.lm_head.weight[399, 31] += 1e-3
    assert checkpoints.share(pre, post) == ["model.norm.weight", "lm_head.weight"]
    assert checkpoints.share(pre, tiny_model(seed=1))  # and again with another


def test_tied_stays_tied():
    """Would catch an unembedding that is cut loose from its embedding, or counted twice."""
    pre: Any = tiny_model("gpt2")
    post: Any = tiny_model("gpt2")
    assert checkpoints.share(pre, post) == []
    assert post.lm_head.weight.data_ptr() == post.transformer.wte.weight.data_ptr()
    assert storage(pre, post) == storage(pre)


def test_models_that_are_not_alike_are_refused():
    """Would catch a share by name of another shape or dtype."""
    for other in (tiny_model("gpt2"), tiny_model().bfloat16()):
        with pytest.raises(CheckpointError, match=r"cannot share memory: .* differs"):
            checkpoints.share(tiny_model(), other)
