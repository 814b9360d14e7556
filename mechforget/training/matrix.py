"""The score matrix R[t, i]: the score of θ_t on task i, for every prompt; saved as it grows."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.checkpoints import Checkpoint
from mechforget.errors import StudyError
from mechforget.training import examples
from mechforget.training.score import score

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.tasks import Task

METRICS = {"log_prob": "nats", "correct": "share"}


class Matrix:
    """Scores of tasks at checkpoints, in a JSON file, from which a killed run resumes.

    A score is stored under the SHA-256 of the checkpoint's weights and of the task's rows. So none
    is computed twice, and none is used after its weights or rows have changed.
    Raises: StudyError: the file is damaged.
    """

    def __init__(self, file: Path, tasks: "list[tuple[Task, int]]") -> None:
        """tasks: each with the first step t that trains it, or 0."""
        self.file = file
        self.tasks = [task for task, _ in tasks]
        self.trained = [t for _, t in tasks]
        self.checkpoints: list[dict[str, Any]] = []
        self.known: dict[tuple[str, str], dict[str, list[float]]] = {}
        if file.exists():
            try:
                kept = json.loads(file.read_text(encoding="utf-8"))
                digests = {task["name"]: task["digest"] for task in kept["tasks"]}
                for checkpoint in kept["checkpoints"]:
                    for name, scores in checkpoint["scores"].items():
                        self.known[checkpoint["digest"], digests[name]] = scores
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise StudyError(
                    f"{file} is damaged ({error}): remove it, and its scores are computed again"
                ) from error

    def add(self, label: str, checkpoint: Checkpoint) -> None:
        """Add the next θ_t, and score it on the tasks that it hasn't been scored on."""
        weights = checkpoint.digest()
        keys = {task.name: (weights, examples.digest(task)) for task in self.tasks}
        new = [task for task in self.tasks if keys[task.name] not in self.known]
        for task, found in zip(new, score(checkpoint, new) if new else [], strict=True):
            self.known[keys[task.name]] = {name: found[name].values.tolist() for name in METRICS}
        scores = {name: self.known[key] for name, key in keys.items()}
        entry = {"label": label, "ref": checkpoint.ref, "digest": weights, "scores": scores}
        self.checkpoints.append(entry)
        if new:
            self.write()

    def write(self) -> None:
        """Write the file; if the process is killed, the old file stays."""
        tasks = [
            examples.description(task) | {"trained": t}
            for task, t in zip(self.tasks, self.trained, strict=True)
        ]
        text = json.dumps({"tasks": tasks, "checkpoints": self.checkpoints}, indent=1)
        partial = self.file.with_name(f".{self.file.name}.partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(self.file)

    def dataset(self) -> "xr.Dataset":
        """The score matrix R.

        Returns: `log_prob` (nats), `correct` (share): R (checkpoint, task), means over prompts;
            the same per prompt (checkpoint, task, prompt) as `log_prob_prompt`,
            `correct_prompt`, NaN beyond a task's own. Coordinates: `checkpoint`, "base" and the
            folders' names; `trained` (task), the first t that was trained on it, 0 if none was;
            `n` (task), prompts; `cluster` (task, prompt), -1 beyond.
        Source: Lopez-Paz & Ranzato 2017, arXiv:1706.08840.
        """
        import xarray as xr

        n = [len(task) for task in self.tasks]
        found: dict[str, Any] = {}
        for name, unit in METRICS.items():
            values = np.full((len(self.checkpoints), len(n), max(n)), np.nan)
            for t, checkpoint in enumerate(self.checkpoints):
                for i, task in enumerate(self.tasks):
                    values[t, i, : n[i]] = checkpoint["scores"][task.name][name]
            mean = np.nanmean(values, axis=-1)
            found[name] = (("checkpoint", "task"), mean, {"units": unit})
            found[f"{name}_prompt"] = (("checkpoint", "task", "prompt"), values, {"units": unit})
        cluster = np.full((len(n), max(n)), -1)
        for i, task in enumerate(self.tasks):
            cluster[i, : n[i]] = task.clusters
        coords = {
            "checkpoint": [checkpoint["label"] for checkpoint in self.checkpoints],
            "task": [task.name for task in self.tasks],
            "trained": ("task", self.trained),
            "n": ("task", n),
            "cluster": (("task", "prompt"), cluster),
        }
        return xr.Dataset(found, coords, {"source": "Lopez-Paz & Ranzato 2017"})
