"""The change of each head's pattern when its queries or keys are another checkpoint's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mechforget.models.beside import beside_the_model
from mechforget.models.protocol import Model, Point, Rewrite
from mechforget.sweeps.donor import forward

if TYPE_CHECKING:
    from torch import Tensor

    from mechforget.tasks.encoded import Encoded


@beside_the_model
def repatterned(
    model: Model, encoded: "Encoded", site: str, values: "Mapping[int, Tensor]"
) -> "list[Tensor]":
    """Per layer, the pattern with `values` at site q or k minus the model's own pattern,
    [row, head, query, key].

    values: layer -> [row, position, unit, d].
    A head's pattern depends on its own queries and keys only, so all heads of a layer are changed
    together. The changed rows are copies that each layer starts anew from the unchanged ones, so
    every layer sees the model's own stream. This takes one forward pass with twice the rows.
    """
    import torch

    rows = len(encoded.fed)
    found: list[Tensor] = []

    def enter(t: "Tensor") -> "Tensor":
        return torch.cat([t[:rows], t[:rows]])

    def change(layer: int) -> Rewrite:
        def put(t: "Tensor") -> "Tensor":
            t[rows:] = values[layer].to(t)
            return t

        return put

    def keep(t: "Tensor") -> None:
        found.append((t[rows:] - t[:rows]).clone())

    layers = range(model.spec.layers)
    rewrites: dict[Point, Rewrite] = {(layer, "resid_pre"): enter for layer in layers}
    rewrites |= {(layer, site): change(layer) for layer in layers}
    rewrites |= {(layer, "pattern"): keep for layer in layers}
    rewrites[model.spec.layers, "unembed"] = lambda t: t[:1, :1]
    with torch.no_grad():
        forward(model, encoded, rewrites)
    return found
