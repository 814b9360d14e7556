"""Direct logit attribution: what each component adds to the answer's logit difference."""

from typing import TYPE_CHECKING

import numpy as np

from mechforget.errors import MeasureError
from mechforget.measures.explained import described
from mechforget.measures.forgetting import AT
from mechforget.measures.inputs import Inputs, measure
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.direct import attribute

if TYPE_CHECKING:
    import xarray as xr


@measure
def logit_attribution(inputs: Inputs) -> "xr.Dataset":
    """Contributions to logit(right) - logit(wrong) at the first token where the answers differ.

    The residual stream is a sum; that run's final norm, its scale held fixed, is a linear map; so
    the raw logit difference (before any soft cap) is a sum over what was written.
    Returns: per (at, prompt): `heads` (layer, head), `mlps` (layer), `embed`, `rest` (biases, and
        what no component explains), all summing to `logit_diff` to 1e-4. NaN where a prompt has
        no wrong answer, or one answer begins with the other.
    Raises: MeasureError: this model's residual stream is no plain sum.
    Source: nostalgebraist 2020 (logit lens); Elhage et al. 2021. Blind to what later components
        make of a contribution: this is the direct path only.
    Examples:
        >>> found = logit_attribution(planted)
        >>> written = found["heads"].sum(("layer", "head")) + found.mlps.sum("layer")
        >>> bool(abs(written + found.embed + found.rest - found.logit_diff).max() < 1e-3)
        True
    """
    if inputs.post.spec.residual_scale is None:
        raise MeasureError(
            f"the residual stream of a {inputs.post.spec.family} model is not the sum of its "
            "sublayers: "
            "leave logit_attribution out of the measures"
        )

    def some(chunk: Chunk) -> "xr.Dataset":
        import xarray as xr

        encoded = chunk.encoded
        both = [attribute(m, encoded) for m in (inputs.pre, inputs.post)]
        dims = {"heads": ("prompt", "layer", "head"), "mlps": ("prompt", "layer")}
        return xr.Dataset(
            {
                name: (("at", *dims.get(name, ("prompt",))), np.stack([b[name] for b in both]))
                for name in both[0]
            },
            coords={
                "at": list(AT),
                "layer": range(inputs.post.spec.layers),
                "head": range(inputs.post.spec.heads),
                "cluster": ("prompt", encoded.cluster),
            },
        )

    return described(
        inputs.over_prompts("logit attribution", some, variants=1),
        "Elhage et al. 2021",
        heads=("nats", "contribution of a head to the logit difference"),
        mlps=("nats", "contribution of an MLP to the logit difference"),
        embed=("nats", "contribution of the embeddings to the logit difference"),
        rest=("nats", "contribution of the biases, and what no component explains"),
        logit_diff=("nats", "difference of the logits of the right and the wrong answer"),
    )
