"""From written to expressed: whose changed weights made a head write what it now writes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mechforget.errors import MeasureError
from mechforget.measures.explained import described
from mechforget.measures.inputs import Inputs, measure
from mechforget.measures.ledger import along, descriptions, labelled, routing_held
from mechforget.models.beside import is_served
from mechforget.models.protocol import Model, Point, Rewrite
from mechforget.models.sites import Edit
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.donor import Donor, forward
from mechforget.sweeps.gradients import gradients
from mechforget.sweeps.uses import HeadOutput
from mechforget.sweeps.weights import between

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor


@measure
def origins(inputs: Inputs, *, layer: int, head: int) -> "xr.Dataset":
    """The ledger (integrated gradients over the weights) of one head's effect in place of the loss:
    whose change made the head write what it now writes.

    The head's effect on log_prob, to first order, is its output times g, the gradient where
    it enters post's stream; g is held while the weights go from pre to post. Shares are those of
    -∫₀¹ ∇(head_out · g)·Δ dt, positive where the change made the head do harm.
    Returns: as `ledger`: they sum to `change`, which is `attribution`'s restore of this head, but
        for `gap`. An output bias is no head's. Layers above the head's have none.
    Raises: MeasureError: a served model, or no such head. SweepError: no site head_out.
    Source: as `ledger`. Blind to the head's harm beyond first order: compare `change` with the
        exact patching effect.
    Examples:
        >>> heads = origins(planted, layer=1, head=2)["heads"].mean("prompt")
        >>> np.argwhere(heads.values).tolist()  # (matrix, layer, head): its own W_O
        [[1, 1, 2]]
    """
    import torch

    spec = inputs.post.spec
    spec.require("head_out")
    if is_served(inputs.pre) or is_served(inputs.post):
        raise MeasureError(
            "origins needs the weights of both checkpoints in one place, like the ledger"
        )
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

        def effect(model: Model, held: Mapping[Point, Rewrite] = {}) -> np.ndarray:
            z: list[Tensor] = []
            kept: dict[Point, Rewrite] = {
                (layer, "z"): lambda t: z.append(t.clone()),
                (spec.layers, "unembed"): lambda t: t[:1, :1],
            }
            with torch.no_grad():
                forward(model, encoded, {**held, **kept})
                value = Donor(model, {(layer, "z"): z[0]}).at(edit).cpu()
            by_row = (value * pull).double().sum((1, 2)).numpy()
            return np.bincount(encoded.fed_prompt, by_row, encoded.n_prompts)

        change = effect(inputs.pre) - effect(inputs.post)
        routing = np.zeros(encoded.n_prompts)
        if held:  # the path ends with pre's routing
            with between(inputs.pre, inputs.post, 1.0):
                routing = effect(inputs.pre, held) - effect(inputs.post)
        of = HeadOutput(layer, head, pull)
        found, gap, nodes = along(inputs, encoded, change - routing, held, of)
        return labelled(found, change, gap, routing, nodes, spec, encoded)

    name = f"origins L{layer}H{head}"
    found = inputs.over_prompts(name, some, variants=spec.layers, across=False)
    return described(found, "1703.01365", **descriptions("the harm of the head")).assign_attrs(
        layer=layer, head=head
    )
