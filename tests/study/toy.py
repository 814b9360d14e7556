"""A measure as a stranger would write one: this file, and one entry in the catalogue."""

import numpy as np
import xarray as xr

from mechforget.measures.inputs import Inputs, measure

made, stop_after = 0, -1  # chunks; at which the user presses Ctrl-C


@measure
def toy(inputs: Inputs) -> xr.Dataset:
    """How many tokens a prompt and its right answer have. Returns: `length` (prompt), tokens."""

    def some(chunk):
        global made
        if made == stop_after:
            raise KeyboardInterrupt
        made += 1
        encoded = chunk.encoded
        length = encoded.length[encoded.first_rows].astype(float)
        attrs = {"units": "tokens", "long_name": "tokens of prompt and answer"}
        return xr.Dataset(
            {"length": ("prompt", np.asarray(length), attrs)},
            coords={"cluster": ("prompt", encoded.cluster)},
        )

    return inputs.over_prompts("toy", some, variants=0).assign_attrs(source="this test")
