"""Clean/corrupt patching within each checkpoint: which heads did the task before, which do now."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mechforget.errors import MeasureError
from mechforget.measures.explained import described
from mechforget.measures.forgetting import AT
from mechforget.measures.inputs import Inputs, measure
from mechforget.measures.patching import effects, labelled
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.donor import Donor
from mechforget.sweeps.plan import single

if TYPE_CHECKING:
    import xarray as xr


@measure
def clean_corrupt(inputs: Inputs, *, site: str = "z") -> "xr.Dataset":
    """Denoising and noising (activation patching from clean and corrupted prompts) of one site.

    denoise = m(corrupted with site <- clean) - m(corrupted); noise = m(clean) - m(clean with site
    <- corrupted); the answers are the clean prompt's. Exact, both checkpoints, every place.
    Returns: `effect` (at, metric, direction, layer[, head], prompt), nats; prompts without a
        counterpart are NaN. The difference along `at` is what the place gained or lost.
    Raises: MeasureError: the task has no corrupted prompts.
    Source: Wang et al. 2022, 2211.00593; Zhang & Nanda, 2309.16042. Blind to what clean and
        corrupted prompts share.
    Examples:
        >>> effect = clean_corrupt(planted, site="resid_pre").effect.sel(metric="log_prob", layer=0)
        >>> denoise, noise = effect.sel(direction="denoise"), effect.sel(direction="noise")
        >>> bool(abs(denoise - noise).max() < 1e-3)  # what enters the first layer is all there is
        True
    """
    if inputs.corrupted is None:
        raise MeasureError(
            "clean_corrupt needs a corrupted counterpart of each prompt: a column `corrupted`, a "
            "clean/corrupted CSV, or task.counterparts(tokenizer)"
        )
    corrupted = inputs.corrupted
    variants = single(inputs.post.spec, site)

    def some(chunk: Chunk) -> "xr.Dataset":
        import xarray as xr

        encoded, other = chunk.encoded, chunk.beside
        assert other is not None, "it was asked for"
        same = (encoded.ids == other.ids).all(1)
        idle = np.bincount(encoded.row_prompt, ~same, encoded.n_prompts) == 0
        found = []
        for model in (inputs.pre, inputs.post):
            effect = {}
            clean, corrupt = (Donor.of(model, e, variants) for e in (encoded, other))
            for direction, base, source, own, sign in (
                ("denoise", other, clean, corrupt, 1),
                ("noise", encoded, corrupt, clean, -1),
            ):
                run = replace(chunk, encoded=base)
                effect[direction] = sign * effects(model, run, source, variants, own=own)
                effect[direction][..., idle] = np.nan
            found.append(labelled(effect, inputs.post.spec, site, None, encoded))
        return xr.concat(found, "at").assign_coords(at=list(AT))

    name = f"clean_corrupt {site}"
    found = inputs.over_prompts(name, some, variants=len(variants), beside=corrupted)
    effect = ("nats", f"effect of patching {site} between clean and corrupted prompt")
    return described(found, "2211.00593", effect=effect).assign_attrs(site=site)
