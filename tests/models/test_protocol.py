"""The shapes in the protocol's signatures are those that the backends take and give."""

import inspect
from typing import Any

import pytest
import torch
from beartype.door import is_bearable
from jaxtyping import jaxtyped

from mechforget.models.protocol import Model
from tests.measures import toy
from tests.tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0], [12, 13, 14, 15]])


def call(model: Any, name: str, *args: Any) -> Any:
    """Calls a method, and compares what goes in and what comes out with the protocol's signature:
    one name of an axis is one length in all of them."""
    declared = getattr(Model, name)
    hints = declared.__annotations__
    bound = inspect.signature(declared).bind(model, *args).arguments
    with jaxtyped("context"):
        for argument in bound.keys() & hints.keys():
            if not isinstance(hints[argument], str):
                assert is_bearable(bound[argument], hints[argument]), argument
        found = getattr(model, name)(*args)
        assert is_bearable(found, hints["return"]), f"{name} returns another shape"
    return found


def captured(model: Any, *points: tuple[int, str]) -> list[torch.Tensor]:
    seen: dict[tuple[int, str], torch.Tensor] = {}
    keep = {p: lambda t, p=p: seen.update({p: t.clone()}) for p in points}
    call(model, "run", IDS, keep)
    return [seen[p] for p in points]


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma2"])
def test_a_backend_keeps_to_the_shapes(family, backend):
    """Catches a backend that transposes a weight, lacks the batch, or gives a bias another size."""
    model = toy.opened(tiny_model(family), backend)
    for matrix in ("W_Q", "W_K", "W_V", "W_O"):
        call(model, "weight", 0, matrix, 1)
    call(model, "unembedding")
    (stream,) = captured(model, (1, "resid_pre"))
    call(model, "norm", 1, "final", stream)
    if model.has(1, "q_norm"):
        (q,) = captured(model, (1, "q_norm"))
        assert call(model, "per_head", "q_norm", q).shape[2] == model.spec.heads
        call(model, "norm_weight", 1, "q_norm")


def test_a_mixture_keeps_to_the_shapes():
    """Catches an expert that gives its tokens in a list, as its module takes them."""
    model = toy.opened(tiny_model("qwen3_moe"), "nnsight")
    given, router = captured(model, (1, "experts_in"), (1, "router"))
    call(model, "expert_out", 1, 0, given, router)
    assert call(model, "gate", 1).shape[0] == model.spec.experts


def test_another_shape_is_noticed():
    """Catches a comparison that nothing can fail."""
    model = toy.opened(tiny_model("gpt2"), "nnsight")
    with pytest.raises(AssertionError, match="ids"):
        call(model, "run", IDS[0], {})
    with pytest.raises(AssertionError, match="ids"):
        call(model, "run", IDS.float(), {})
    model.unembedding = lambda: (torch.ones(4, 3), torch.ones(3))
    with pytest.raises(AssertionError, match="unembedding returns another shape"):
        call(model, "unembedding")
