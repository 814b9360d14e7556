"""Llama 4's mixtures, rewritten so that each expert runs only on the tokens that chose it.

In transformers, every expert of Llama 4 runs on every token, with zeros for those that didn't
choose it: E / k times the work that is needed (16 times for Scout, 128 times for Maverick). Experts
have no biases, so zeros in give zeros out, and leaving them out is exact. The rewritten mixture
calls its experts as every other family does: with (hidden, chosen experts, their weights).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mechforget.models.forward import replace_forward, restored
from mechforget.models.half import product

if TYPE_CHECKING:
    from torch import Tensor, nn


def dispatch_routed(model: "nn.Module") -> None:
    """Rewrites the model's mixtures in place; other families are left as they are."""
    for module, forward in _rewritten(model).items():
        replace_forward(module, forward)


@contextmanager
def may_dispatch_routed(model: "nn.Module") -> Iterator[None]:
    """Inside, `dispatch_routed` may be used on a model that others use too: afterwards its mixtures
    are as they were."""
    with restored(_rewritten(model)):
        yield


def _rewritten(model: "nn.Module") -> "dict[nn.Module, Any]":
    """The modules of Llama 4's mixtures, and the forward that each is given."""
    instead = {"Llama4TextMoe": _mixture, "Llama4TextExperts": _experts}
    named = ((module, type(module).__name__) for module in model.modules())
    return {module: instead[name] for module, name in named if name in instead}


def _mixture(self: Any, hidden_states: "Tensor") -> "tuple[Tensor, Tensor]":
    import torch

    hidden = hidden_states.reshape(-1, self.hidden_dim)
    scores, logits = self.router(hidden)
    weights, chosen = torch.topk(scores, self.top_k, dim=1)
    out = self.shared_expert(hidden) + self.experts(hidden, chosen, weights)
    return out, logits


def _experts(self: Any, hidden: "Tensor", chosen: "Tensor", weights: "Tensor") -> "Tensor":
    """Llama 4 multiplies an expert's input by its weight, not its output."""
    import torch

    out = torch.zeros_like(hidden)
    for expert in chosen.unique().tolist():
        token, slot = torch.where(chosen == expert)
        x = hidden[token] * weights[token, slot, None]
        gate, up = product(x, self.gate_up_proj[expert]).chunk(2, dim=-1)
        out.index_add_(0, token, product(up * self.act_fn(gate), self.down_proj[expert]))
    return out
