"""Runs a measure over prompts in chunks that fit a memory budget, shows progress, and resumes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mechforget import progress
from mechforget.errors import SweepError, out_of_memory
from mechforget.models.sites import Spec
from mechforget.sweeps import MEMORY
from mechforget.tasks.encoded import grouped, packed

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.models.protocol import Model, Served
    from mechforget.tasks.encoded import Encoded
    from mechforget.tasks.tree import Group

FIXED = 64  # tokens that could be computed in the time that a forward pass takes without any


@dataclass(frozen=True)
class Chunk:
    """Some prompts of a task, packed, and how many tokens one forward over them may hold."""

    encoded: "Encoded"
    prompts: np.ndarray
    max_tokens: int
    beside: "Encoded | None" = None  # the same prompts with other tokens, packed alike


class Keep(Protocol):
    """Where finished chunks are kept, so that a run that was killed repeats at most one."""

    def finished(self) -> "list[xr.Dataset]":
        """The chunks of an earlier run, in the order in which they were added."""
        ...

    def add(self, chunk: "xr.Dataset") -> None: ...


def suitable_memory(model: "Model | Served") -> float:
    """GB for one forward's activations where this model runs: half of what is free on a GPU;
    elsewhere, and on a server, `MEMORY`."""
    device = getattr(model, "device", None)  # a served model has none here
    if device is None or device.type != "cuda":
        return MEMORY
    import torch

    return max(MEMORY, torch.cuda.mem_get_info(device)[0] / 2e9)


def max_tokens(spec: Spec, memory: float, width: int, reads: float = 1.0) -> int:
    """How many tokens' activations fit `memory` GB, in rows of this width with so many reads:
    residual streams, an MLP four times as wide, attention patterns and logits."""
    values = 24 * spec.d_model + 4 * spec.heads * width + spec.d_vocab * reads / width
    return max(1, int(memory * 1e9 / 4 / values))


def batches(groups: "Sequence[Group]", tokens: int, variants: int = 0) -> "Iterator[list[Group]]":
    """Consecutive groups that are run in one forward pass, with `variants` copies of each.

    They are padded to the widest. A group that would make the others' padding cost more than
    another forward pass begins the next one, as does one that would make more than `tokens`.
    """
    batch: list[Group] = []
    rows = 0
    for group in groups:
        padded = rows * (group.width - batch[-1].width if batch else 0)
        full = (rows + group.rows) * group.width * (1 + variants) > tokens
        if batch and (full or padded * (1 + variants) > FIXED):
            yield batch
            batch, rows = [], 0
        batch.append(group)
        rows += group.rows
    if batch:
        yield batch


def over_prompts(
    encoded: "Encoded",
    measure: "Callable[[Chunk], xr.Dataset]",
    *,
    spec: Spec,
    variants: int,
    label: str,
    memory: float = MEMORY,
    keep: Keep | None = None,
    beside: "Encoded | None" = None,
    across: bool = True,
) -> "xr.Dataset":
    """Calls `measure(chunk)` on chunks of all prompts, and joins the results along `prompt`.

    Prompts that begin alike are packed, see `tasks.tree`, and rows of similar width share a chunk,
    so that there is little padding; the result has the prompts in their own order. If memory runs
    out, the budget is halved and the chunk repeated, down to one prompt and one variant.
    Args: beside: the same prompts with other tokens; they are packed alike. across: whether prompts
        may share tokens; a gradient with respect to a shared one is that of the prompts' sum.
    Raises: SweepError: memory runs out even then.
    """
    import xarray as xr

    every = (encoded,) if beside is None else (encoded, beside)
    done = keep.finished() if keep else []
    known = np.zeros(encoded.n_prompts, bool)
    for chunk in done:
        known[chunk.prompt.values] = True
    reads = encoded.n_read / encoded.n_prompts

    def budget_of(group: "Group") -> int:
        return max_tokens(spec, memory, group.width, reads * len(group.prompts) / group.rows)

    def left() -> "list[Group]":
        """The groups of the prompts that are not finished. A row that doesn't fit twice, for the
        base and a variant, is cut."""
        nodes = spec.nodes
        while True:
            found = grouped(*every, **replace(spec, nodes=nodes).packing, across=across)
            large = [g for g in found if len(g.prompts) > 1 and 2 * g.width > budget_of(g)]
            if not large:
                break
            nodes = large[-1].width // 2
        found = [replace(g, prompts=g.prompts[~known[g.prompts]]) for g in found]
        return [group for group in found if len(group.prompts)]

    waiting = left()
    with progress.bar(label, encoded.n_prompts) as advance:
        advance(int(known.sum()))
        while waiting:
            budget = min(map(budget_of, waiting))
            batch = next(batches(waiting, budget, variants))
            parts, prompts = packed(*every, groups=batch)
            try:
                found = measure(Chunk(parts[0], prompts, budget, *parts[1:]))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if budget <= 2 * batch[-1].width and len(batch[-1].prompts) == 1:
                    raise SweepError(
                        "out of memory with one prompt and one variant: use shorter prompts, a "
                        "smaller dtype or a device with more memory"
                    ) from error
                memory /= 2
                waiting = left()
                continue
            found = found.assign_coords(prompt=prompts)
            if keep:
                keep.add(found)
            done.append(found)
            known[prompts] = True
            waiting = waiting[len(batch) :]
            advance(len(prompts))
    joined = xr.concat(done, "prompt", join="exact", coords="minimal", compat="override")
    return joined.sortby("prompt")
