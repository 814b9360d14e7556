"""From written to expressed: whose changed weights made a head write what it now writes."""

from typing import TYPE_CHECKING

import numpy as np

from mechforget.errors import MeasureError
from mechforget.measures.inputs import Inputs, measure
from mechforget.measures.ledger import along, labelled, routing_held
from mechforget.models.beside import elsewhere
from mechforget.models.protocol import Model
from mechforget.models.sites import Edit
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.donor import Donor
from mechforget.sweeps.gradients import gradients
from mechforget.sweeps.uses import HeadOutput

if TYPE_CHECKING:
    import xarray as xr


@measure
def origins(inputs: Inputs, *, layer: int, head: int) -> "xr.Dataset":
    """The ledger of one head's effect in place of the loss: which early writes reach it.

    The head's effect on log_prob, to first order, is its output times g, the gradient where
    it enters post's stream; g is held while the weights go from pre to post. Shares are those of
    -∫₀¹ ∇(head_out · g)·Δ dt, positive where the change made the head do harm.
    Returns: as `ledger`: they sum to `change`, which is `attribution`'s restore of this head (of a
        layer with an output bias, that bias's change too, under `others`). Layers above the head's
        have none.
    Raises: MeasureError: a served model, or no such head.
    Source: as `ledger`. Blind to what the head's harm is beyond first order: compare `change` with
        the exact patching effect.
    """
    import torch

    spec = inputs.post.spec
    if elsewhere(inputs.pre) or elsewhere(inputs.post):
        raise MeasureError("origins needs the weights of both checkpoints in one place, as ledger")
    if not (0 <= layer < spec.layers and 0 <= head < spec.heads):
        raise MeasureError(
            f"origins: no head L{layer}H{head}: {spec.layers} layers of {spec.heads}"
        )
    edit = Edit(layer, "head_out", head)

    def some(chunk: Chunk) -> "xr.Dataset":
        encoded = chunk.encoded
        point = (layer, "attn_raw")
        pull = gradients(inputs.post, encoded, [point]).activations[point]
        held = routing_held(inputs.pre, encoded)

        def effect(model: Model) -> np.ndarray:
            with torch.no_grad():
                value = Donor.of(model, encoded, [(edit,)]).at(edit).cpu()
            by_row = (value * pull).double().sum((1, 2)).numpy()
            return np.bincount(encoded.row_prompt, by_row, encoded.n_prompts)

        change = effect(inputs.pre) - effect(inputs.post)
        of = HeadOutput(layer, head, pull)
        found, gap, nodes = along(inputs, encoded, change, held, of)
        routing = np.zeros(encoded.n_prompts)
        if held:  # the path ends with pre's routing; what is left is post's own
            routing, gap = gap, routing
        return labelled(found, change, gap, routing, nodes, spec, encoded)

    found = inputs.over_prompts(f"origins L{layer}H{head}", some, variants=spec.layers)
    return found.assign_attrs(layer=layer, head=head)
