"""Scores a checkpoint on tasks, by plain forward passes of the Hugging Face model."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mechforget import checkpoints, progress
from mechforget.checkpoints import Checkpoint

if TYPE_CHECKING:
    import xarray as xr
    from transformers import PreTrainedModel

    from mechforget.tasks import Encoded, Task

BATCH = 16  # prompts in one forward


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
            metrics = part.score(*_read(model, part, advance))
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


def _read(
    model: "PreTrainedModel", encoded: "Encoded", advance: Callable[[float], None]
) -> tuple[np.ndarray, np.ndarray]:
    """log p of each read's target in nats, and whether it is the argmax: [read]."""
    import torch

    log_prob, top = [], []
    for start in range(0, encoded.n_prompts, BATCH):
        part = encoded.subset(np.arange(start, min(start + BATCH, encoded.n_prompts)))
        positions, column = np.unique(part.read_position, return_inverse=True)
        ids, keep, row, column, target = (
            torch.from_numpy(array).to(model.device)
            for array in (part.ids, positions, part.read_row, column, part.read_target)
        )
        with torch.no_grad():
            logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits
        logits = logits[row, column].double()
        log_prob.append(logits.log_softmax(-1).gather(-1, target[:, None])[:, 0].cpu().numpy())
        top.append((logits.argmax(-1) == target).cpu().numpy())
        advance(part.n_prompts)
    return np.concatenate(log_prob), np.concatenate(top)
