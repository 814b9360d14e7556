"""Where heads attend, before and after, and what the report shows of it."""

from typing import TYPE_CHECKING

import numpy as np

from mechforget import measures
from mechforget.measures.attention_change import HALF, SEQUENCES, patterns, readable
from mechforget.study.job import Job, Scope, Work
from mechforget.study.scene import Scene, no_such
from mechforget.study.store import SHOWN

if TYPE_CHECKING:
    import xarray as xr


def jobs(scope: Scope) -> list[Job]:
    read = tuple((layer, "pattern") for layer in range(scope.spec.layers))
    of_sequences = 2 * SEQUENCES * 2 * HALF / max(1, scope.fed)
    return [
        Job("attention_change", lambda work: measures.attention_change(work.pair), 2, also=read),
        Job("attention_roles", _roles, of_sequences),
        Job("patterns", _patterns, 1, once=True),
    ]


def _roles(work: Work) -> "xr.Dataset":
    return measures.attention_roles(work.pair, seed=work.study.seed)


def _patterns(work: Work) -> "xr.Dataset":
    """Attention of the first prompts, both checkpoints, as bytes: 255 is all of it."""
    import xarray as xr

    inputs = work.pair
    encoded = inputs.encoded.subset(np.arange(min(SHOWN, inputs.encoded.n_prompts)))
    both = np.stack([patterns(m, encoded) for m in (inputs.pre, inputs.post)])
    dims = ("at", "layer", "shown", "head", "query", "key")
    attrs = {"units": "1/255", "long_name": "attention probability, as a byte"}
    pattern = np.rint(both.clip(0, 1) * 255).astype(np.uint8)
    return xr.Dataset({"pattern": (dims, pattern, attrs)})


def lacks(scene: Scene) -> str:
    return "" if readable(scene.pair) else no_such(scene.spec)
