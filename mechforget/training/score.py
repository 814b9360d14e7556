"""How well a checkpoint answers: a plain forward of the Hugging Face model, nothing patched."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mechforget import checkpoints, progress
from mechforget.checkpoints import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mechforget.tasks import Encoded, Task

BATCH = 16  # prompts in one forward


def score(
    checkpoint: str | Path | Checkpoint, tasks: "Iterable[Task]"
) -> list[dict[str, np.ndarray]]:
    """The metrics of every prompt, for each task in the order given.

    Returns: per task `log_prob` and `logit_diff` (nats), `correct` and `preferred` (0 or 1), each
        float64 [prompt]: see `Encoded.score`. Weights float32, softmax float64.
    Raises: CheckpointError, TaskError.
    """
    checkpoint = checkpoints.open(checkpoint)
    encoded = [task.encode(checkpoint.tokenizer()) for task in tasks]
    model = checkpoint.load(device=device())
    with progress.bar(f"scoring {checkpoint.path.name}", sum(e.n_prompts for e in encoded)) as advance:
        return [e.score(*_read(model, e, advance)) for e in encoded]


def device() -> str:
    """Where training and scoring run: the first GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _read(model: "PreTrainedModel", encoded: "Encoded", advance) -> tuple[np.ndarray, np.ndarray]:
    """(log p of each read's target in nats, whether it is the argmax), [read]."""
    import torch

    log_prob, top = [], []
    for start in range(0, encoded.n_prompts, BATCH):
        part = encoded.subset(np.arange(start, min(start + BATCH, encoded.n_prompts)))
        positions, column = np.unique(part.read_position, return_inverse=True)
        ids, keep, target = (
            torch.from_numpy(array).to(model.device)
            for array in (part.ids, positions, part.read_target)
        )
        with torch.no_grad():
            logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits
        logits = logits[part.read_row, column].double()
        found = logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]
        log_prob.append(found.cpu().numpy())
        top.append((logits.argmax(-1) == target).cpu().numpy())
        advance(part.n_prompts)
    return np.concatenate(log_prob), np.concatenate(top)
