"""Runs a measure over prompts in chunks that fit a memory budget, shows progress, and resumes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mechforget import progress
from mechforget.errors import SweepError, out_of_memory
from mechforget.models.sites import Spec
from mechforget.sweeps import MEMORY

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.tasks.encoded import Encoded


@dataclass(frozen=True)
class Chunk:
    """Some prompts of a task, and how many tokens one forward over them may hold."""

    encoded: "Encoded"
    prompts: np.ndarray
    max_tokens: int


class Keep(Protocol):
    """Where finished chunks are kept, so that a run that was killed repeats at most one."""

    def finished(self) -> "list[xr.Dataset]":
        """The chunks of an earlier run, in the order in which they were added."""
        ...

    def add(self, chunk: "xr.Dataset") -> None: ...


def max_tokens(spec: Spec, memory: float, positions: int) -> int:
    """How many tokens' activations fit `memory` GB: residual streams, an MLP four times as wide,
    attention patterns and logits."""
    values = 24 * spec.d_model + 4 * spec.heads * positions + spec.d_vocab / positions
    return max(1, int(memory * 1e9 / 4 / values))


def over_prompts(
    encoded: "Encoded",
    measure: "Callable[[Chunk], xr.Dataset]",
    *,
    spec: Spec,
    variants: int,
    label: str,
    memory: float = MEMORY,
    keep: Keep | None = None,
) -> "xr.Dataset":
    """Calls `measure(chunk)` on chunks of all prompts, and joins the results along `prompt`.

    Prompts of similar length share a chunk, so that there is little padding; the result has the
    prompts in their own order. If memory runs out, the budget is halved and the chunk repeated,
    down to one prompt and one variant.
    Raises: SweepError: memory runs out even then.
    """
    import xarray as xr

    done = keep.finished() if keep else []
    at = sum(chunk.sizes["prompt"] for chunk in done)
    longest = np.zeros(encoded.n_prompts, int)
    np.maximum.at(longest, encoded.row_prompt, encoded.length)
    order = np.argsort(longest, kind="stable")
    n_rows = np.bincount(encoded.row_prompt)
    budget = max_tokens(spec, memory, encoded.ids.shape[1])
    with progress.bar(label, encoded.n_prompts) as advance:
        advance(at)
        while at < encoded.n_prompts:
            # Tokens of one forward over the next 1, 2, ... prompts, padded to the last of them.
            rows = np.cumsum(n_rows[order[at:]]) * (variants + 1)
            size = max(1, int(np.searchsorted(rows * longest[order[at:]], budget, side="right")))
            prompts = order[at : at + size]
            try:
                found = measure(Chunk(encoded.subset(prompts), prompts, budget))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if budget <= 2 * encoded.ids.shape[1]:
                    raise SweepError(
                        "out of memory with one prompt and one variant: use shorter prompts, a "
                        "smaller dtype or a device with more memory"
                    ) from error
                budget //= 2
                continue
            found = found.assign_coords(prompt=prompts)
            if keep:
                keep.add(found)
            done.append(found)
            at += size
            advance(size)
    joined = xr.concat(done, "prompt", join="exact", coords="minimal", compat="override")
    return joined.sortby("prompt")
