"""Scores a checkpoint on tasks, by plain forward passes of the Hugging Face model."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mechforget import checkpoints, progress
from mechforget.checkpoints import Checkpoint
from mechforget.checkpoints.families import TESTED, family
from mechforget.models.masks import arguments, largest
from mechforget.models.sites import packing
from mechforget.sweeps.chunks import batches
from mechforget.tasks.encoded import grouped, packed

if TYPE_CHECKING:
    import xarray as xr
    from transformers import PreTrainedModel

    from mechforget.tasks import Encoded, Task

TOKENS = 1024  # in one forward pass


def score(checkpoint: str | Path | Checkpoint, tasks: "Iterable[Task]") -> "list[xr.Dataset]":
    """The metrics of every prompt, one dataset per task, in the given order.

    Returns: `log_prob` and `logit_diff` (nats), `correct` and `preferred` (0 or 1), float64
        (prompt), see `Encoded.score`; coordinate `cluster`. Weights float32, softmax float64.
    Raises: CheckpointError, TaskError. Blind to correct answers in other words.
    """
    import xarray as xr

    checkpoint = checkpoints.open(checkpoint)
    tasks = list(tasks)
    encoded = [task.encode(checkpoint.tokenizer()) for task in tasks]
    model = checkpoint.load(device=device())
    total = sum(part.n_prompts for part in encoded)
    found = []
    with progress.bar(f"scoring {checkpoint.path.name}", total) as advance:
        for task, part in zip(tasks, encoded, strict=True):
            chunks = [(p, c.score(*_read(model, c))) for p, c in _chunks(model, part, advance)]
            order = np.argsort(np.concatenate([prompts for prompts, _ in chunks]))
            metrics = {
                name: np.concatenate([scores[name] for _, scores in chunks])[order]
                for name in chunks[0][1]
            }
            found.append(
                xr.Dataset(
                    {name: ("prompt", values) for name, values in metrics.items()},
                    {"prompt": np.arange(part.n_prompts), "cluster": ("prompt", part.cluster)},
                    {"task": task.name, "source": task.source, "checkpoint": checkpoint.ref},
                )
            )
    return found


def device() -> str:
    """Training and scoring run on the first GPU if there is one, else on the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _chunks(
    model: "PreTrainedModel", encoded: "Encoded", advance: Callable[[float], None]
) -> "Iterator[tuple[np.ndarray, Encoded]]":
    """Prompts for one forward pass each, with their numbers. Packed, where the tests open models of
    this family: here no proof tells whether others can be."""
    config = model.config.get_text_config()
    packs = config.model_type in TESTED and family(config.model_type).packs
    groups = grouped(encoded, **packing(largest(config) if packs else 0, config.hidden_size))
    for batch in batches(groups, TOKENS):
        (part,), prompts = packed(encoded, groups=batch)
        yield prompts, part
        advance(part.n_prompts)


def _read(model: "PreTrainedModel", encoded: "Encoded") -> tuple[np.ndarray, np.ndarray]:
    """log p of each read's target in nats, and whether it is the argmax: [read]."""
    import torch

    fed, node = encoded.read_at
    nodes, column = np.unique(node, return_inverse=True)
    ids, keep, row, column, target = (
        torch.from_numpy(array).to(model.device)
        for array in (encoded.fed, nodes, fed, column, encoded.read_target)
    )
    config = model.config.get_text_config()
    masks = arguments(config, encoded.parent, model.dtype, model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False, **masks).logits
    logits = logits[row, column].double()
    log_prob = logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]
    return log_prob.cpu().numpy(), (logits.argmax(-1) == target).cpu().numpy()
