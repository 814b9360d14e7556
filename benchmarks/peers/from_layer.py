"""A careful loop in plain Hugging Face: a batch of all heads of a layer, begun at that layer.

What enters each layer is kept from one pass of the recipient, so the layers below the patched one
are not computed again, and only the positions that are read are unembedded.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import places
from benchmarks.prompts import Sequences


class FromLayer:
    """site: z, q, k or v, by head or group; or resid_pre, by position."""

    def __init__(self, models: Sequence[Any], sequences: Sequences, site: str, units: int) -> None:
        self.models, self.sequences, self.site, self.units = models, sequences, site, units
        device = models[0].device
        self.ids, self.row, self.position, self.target = places.tensors(sequences, device)

    @torch.no_grad()
    def prepare(self) -> None:
        """Both models once: what enters each layer, the site's values, and the scores."""
        self.entering: list[list[tuple[Any, Any]]] = []
        self.values: list[list[Tensor]] = []
        self.base: list[Tensor] = []
        for model in self.models:
            entering: list[tuple[Any, Any]] = []
            values: list[Tensor] = []
            handles = [
                block.register_forward_pre_hook(
                    lambda m, args, kwargs, to=entering: to.append((args, kwargs)), with_kwargs=True
                )
                for block in places.layers(model)
            ]
            if self.site != "resid_pre":
                for layer in range(model.config.num_hidden_layers):
                    at = places.place(model, layer, self.site)
                    handles.append(at.hook(lambda t, to=values: to.append(t)))
            with places.hooked(handles):
                hidden = places.body(model)(self.ids, use_cache=False).last_hidden_state
            if self.site == "resid_pre":
                values = [args[0] for args, _ in entering]
            self.base.append(self._scores(model, hidden[self.row, self.position]))
            self.entering.append(entering)
            self.values.append(values)

    def run(self, layers: Sequence[int]) -> np.ndarray:
        """Effects [metric, direction, layer, unit, prompt]; restore is post with pre's values."""
        return places.both_directions(self, layers)

    @torch.no_grad()
    def layer(self, recipient: int, layer: int) -> Tensor:
        """log p [unit, read]."""
        model = self.models[recipient]
        (hidden, *rest), kwargs = self.entering[recipient][layer]
        theirs = self.values[1 - recipient][layer]
        rows = len(hidden)
        hidden = hidden.repeat(self.units, 1, 1)
        handles = []
        if self.site == "resid_pre":
            for unit, block in enumerate(hidden.split(rows)):
                block[:, unit] = theirs[:, unit]
        else:
            at = places.place(model, layer, self.site)

            def put(value: Tensor) -> Tensor:
                value = value.clone()
                for unit, block in enumerate(value.split(rows)):
                    block[..., at.columns(unit)] = theirs[..., at.columns(unit)]
                return value

            handles = [at.hook(put)]
        with places.hooked(handles):
            for block in list(places.layers(model))[layer:]:
                hidden = block(hidden, *rest, **kwargs)
        by_unit = hidden.unflatten(0, (self.units, rows))[:, self.row, self.position]
        return self._scores(model, places.last_norm(model)(by_unit))

    def _scores(self, model: Any, read: Tensor) -> Tensor:
        return places.log_prob(model, read, self.target)
