"""How many parameters a model has, by part and layer, and what a token costs it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """The parameters of one block. `mlp`: what every token runs through, a dense MLP or a mixture's
    router and shared experts. `experts`: all routed experts. `norms`: the rest."""

    attention: int
    mlp: int
    experts: int
    norms: int
    values: int  # a token's attention-weighted values: heads · d_v

    @property
    def total(self) -> int:
        return self.attention + self.mlp + self.experts + self.norms


@dataclass(frozen=True)
class Sizes:
    layers: tuple[Layer, ...]
    outside: int  # embeddings, unembedding (once, where it is the same matrix) and the last norm
    unembedding: int
    experts: int  # in a layer that is a mixture
    chosen: int  # of them, for a token

    @property
    def total(self) -> int:
        return self.outside + sum(layer.total for layer in self.layers)

    @property
    def active(self) -> float:
        """Parameters that one token runs through, embeddings included."""
        return self.total - sum(x.experts for x in self.layers) * (1 - self.share)

    @property
    def share(self) -> float:
        """The share of the routed experts that a token runs through; 1 if nothing is routed."""
        return self.chosen / self.experts if self.experts else 1.0

    @property
    def largest(self) -> int:
        """The size of the largest layer: if weights are streamed, at least this must fit."""
        return max(layer.total for layer in self.layers)

    def block(self, tokens: int, *, dense: bool = False) -> float:
        """FLOPs of a token in the mean block, in rows of so many tokens.

        2 · (attention + mlp + experts · k / E) + 4 · tokens · heads · d_v: a multiplication and an
        addition per weight; q·k and p·v with every key, as eager attention does. dense: with every
        expert run on every token, as transformers runs Llama 4.
        """
        share = 1.0 if dense else self.share
        each = [
            2 * (x.attention + x.mlp + x.experts * share) + 4 * tokens * x.values
            for x in self.layers
        ]
        return sum(each) / len(each)


def sizes(model: Any) -> Sizes:
    """Of a model behind the nnsight backend; nothing is read but shapes."""
    whole, found = model.module, []
    text = whole.config.get_text_config()

    def count(path: str | None) -> int:
        return 0 if path is None else sum(p.numel() for p in whole.get_submodule(path).parameters())

    for layer in model.modules.layers:
        attention, experts = count(layer.attention), count(layer.experts)
        mlp = sum(map(count, layer.mlp)) - experts
        rest = count(layer.path) - attention - mlp - experts
        values = whole.get_submodule(layer.o).weight.numel() // model.spec.d_model
        found.append(Layer(attention, mlp, experts, rest, values))
    total = sum(p.numel() for p in whole.parameters())
    return Sizes(
        layers=tuple(found),
        outside=total - sum(layer.total for layer in found),
        unembedding=model.unembedding()[0].numel(),
        experts=model.spec.experts,
        chosen=int(getattr(text, "num_experts_per_tok", 1)) if model.spec.experts else 0,
    )
