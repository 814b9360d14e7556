"""A task as training examples: the same tokens that are scored, with the loss on the answer.

The tokens of an example are those that `Task.encode` makes of prompt and answer, so a model is
trained on exactly what it is scored on. The loss is taken over answer tokens only, since only they
are scored. No end-of-text token is put after the answer.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.errors import TaskError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from mechforget.tasks import Encoded, Task

IGNORED = -100  # torch's cross entropy ignores this label


def examples(encoded: "Encoded") -> tuple[np.ndarray, np.ndarray]:
    """(ids, labels), int64 [prompt, position]: prompt and right answer, right-padded with 0.

    A label is the id at its own position (transformers shifts them itself), or IGNORED.
    """
    right = ~encoded.read_wrong
    prompt = encoded.read_prompt[right]
    place = prompt, encoded.read_position[right] + 1  # a read predicts the token after it
    row = np.zeros(encoded.n_prompts, dtype=np.int64)
    row[prompt] = encoded.read_row[right]
    last = np.zeros(encoded.n_prompts, dtype=np.int64)
    np.maximum.at(last, *place)

    ids = np.pad(encoded.ids[row], ((0, 0), (0, 1)))  # a row lacks the answer's last token
    labels = np.full_like(ids, IGNORED)
    ids[place] = labels[place] = encoded.read_target[right]
    beyond = np.arange(ids.shape[1]) > last[:, None]  # padding, or the rest of a wrong answer
    return np.where(beyond, 0, ids), labels


def dataset(encoded: "Encoded") -> "list[dict[str, torch.Tensor]]":
    """One dict per prompt, as transformers' Trainer with `collate` wants them."""
    import torch

    return [
        {"input_ids": torch.from_numpy(row), "labels": torch.from_numpy(label)}
        for row, label in zip(*examples(encoded), strict=True)
    ]


def collate(rows: "list[dict[str, torch.Tensor]]") -> "dict[str, torch.Tensor]":
    """A batch, without the padding that all its rows share.

    There is no attention mask: the padding is on the right, which causal attention never attends
    to, and scoring has no mask either.
    """
    import torch

    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    longest = int((batch["labels"] != IGNORED).any(0).nonzero().max()) + 1
    return {name: value[:, :longest] for name, value in batch.items()}


def check_length(task: "Task", encoded: "Encoded", config: "PreTrainedConfig") -> None:
    """Raises: TaskError: a prompt with its answer is longer than the model's context."""
    longest = encoded.ids.shape[1] + 1
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise TaskError(
            f"{task.source}: the longest prompt has {longest} tokens with its answer, the model "
            f"takes {limit}: shorten the prompts, or use fewer few-shot examples"
        )


def digest(task: "Task") -> str:
    """SHA-256 of the prompts and answers alone; the task's name and source don't count."""
    pairs = task.rows[["prompt", "answer"]].values.tolist()
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def description(task: "Task") -> dict[str, Any]:
    """A description of the task for a JSON record."""
    return {
        "name": task.name,
        "source": task.source,
        "notes": list(task.notes),
        "prompts": len(task),
        "digest": digest(task),
    }
