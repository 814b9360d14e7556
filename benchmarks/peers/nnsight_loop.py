"""A good loop in nnsight: all heads of a layer as invokes of one trace, which runs as one batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import places
from benchmarks.prompts import Sequences


class Traces:
    """z, by head. Only one position is unembedded in the trace, and what is read after it."""

    def __init__(self, models: Sequence[Any], tokenizer: Any, sequences: Sequences) -> None:
        from nnsight import TransformersModel

        self.models, self.sequences = models, sequences
        how: dict[str, Any] = {"tokenizer": tokenizer, "task": "text-generation"}
        self.traced: list[Any] = [TransformersModel(model, **how) for model in models]
        device = models[0].device
        self.ids, self.row, self.position, self.target = places.tensors(sequences, device)

    @torch.no_grad()
    def prepare(self) -> None:
        """The donors' values, and the scores of both models."""
        self.values: list[list[Tensor]] = []
        self.base: list[Tensor] = []
        for model, traced in zip(self.models, self.traced, strict=True):
            with traced.trace(self.ids, use_cache=False, logits_to_keep=1):
                values = [].save()  # type: ignore[attr-defined]  # nnsight adds it
                for layer in range(model.config.num_hidden_layers):
                    values.append(places.place(traced, layer, "z").module.input)
                read = places.last_norm(traced).output[self.row, self.position].save()
            self.values.append(list(values))
            self.base.append(places.log_prob(model, read, self.target))

    @torch.no_grad()
    def run(self, layers: Sequence[int]) -> np.ndarray:
        """Effects [metric, direction, layer, head, prompt]."""
        return places.both_directions(self, layers)

    def layer(self, recipient: int, layer: int) -> Tensor:
        """log p [head, read]."""
        model, traced = self.models[recipient], self.traced[recipient]
        theirs, at = self.values[1 - recipient][layer], places.place(traced, layer, "z")
        with traced.trace() as tracer:
            found = [].save()  # type: ignore[attr-defined]  # nnsight adds it
            for head in range(model.config.num_attention_heads):
                columns = at.columns(head)
                with tracer.invoke(self.ids, use_cache=False, logits_to_keep=1):
                    at.module.input[..., columns] = theirs[..., columns]
                    found.append(places.last_norm(traced).output[self.row, self.position])
        return places.log_prob(model, torch.stack(list(found)), self.target)
