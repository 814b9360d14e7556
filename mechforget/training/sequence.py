"""Trains on tasks in order: θ_t starts from θ_{t-1}, and every task is scored at every θ_t."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mechforget import checkpoints
from mechforget.checkpoints import Checkpoint
from mechforget.errors import StudyError
from mechforget.training import examples, finished
from mechforget.training.finetune import check, finetune
from mechforget.training.matrix import Matrix
from mechforget.training.sequence_file import read

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.tasks import Task

SCORES = "scores.json"


def train(path: str | Path) -> "xr.Dataset":
    """Train a sequence file's tasks into `out/1-NAME`, `out/2-NAME`, ... and `out/scores.json`.

    What `out` already holds of this sequence is kept. So a sequence that was killed, or whose file
    got more tasks at its end, resumes where it stopped.
    Returns: the score matrix R[t, i]: see `Matrix.dataset`.
    Raises: StudyError: the file is wrong, or `out` holds something else. TaskError,
        CheckpointError. All of these are raised before any work begins; StudyError also when a
        training diverges.
    """
    said = read(path)
    base = checkpoints.open(said.base)
    old = [part.load() for part in said.old]
    new = [part.load() for part in said.tasks]
    settings = [said.settings(part) for part in said.tasks]
    scored = _scored(old, new)

    out = Path(said.out).expanduser()
    folders = [out / f"{t}-{_slug(task.name)}" for t, task in enumerate(new, 1)]
    steps = list(zip(folders, new, settings, strict=True))
    for task in old:
        examples.check_length(task, task.encode(base.tokenizer()), base.config)
    for _, task, how in steps:
        check(base, task, how)
    _refuse_others(out, folders)
    reached: Checkpoint | None = base
    for folder, task, how in steps:
        done = finished.is_done(folder, reached, task, how)
        reached = checkpoints.open(folder) if done else None
    matrix = Matrix(out / SCORES, scored)

    out.mkdir(parents=True, exist_ok=True)
    matrix.add("base", base)
    reached = base
    for folder, task, how in steps:
        reached = checkpoints.open(finetune(reached, task, folder, how))
        matrix.add(folder.name, reached)
    matrix.write()
    return matrix.dataset()


def _scored(old: "list[Task]", new: "list[Task]") -> "list[tuple[Task, int]]":
    """Each task once, the old ones first, with the first step t that trains it, or 0.

    Raises: StudyError: two tasks have the same name.
    """
    found: dict[str, tuple[Task, int]] = {}
    for t, task in [*((0, task) for task in old), *enumerate(new, 1)]:
        first, at = found.get(task.name, (task, t))
        if examples.digest(first) != examples.digest(task):
            raise StudyError(
                f"{first.source} and {task.source} are both called {task.name!r}, but their rows "
                f"differ: give one of them another name (name = ...)"
            )
        found[task.name] = first, at or t
    return list(found.values())


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _refuse_others(out: Path, folders: list[Path]) -> None:
    if out.exists() and not out.is_dir():
        raise StudyError(f"out = {out} is a file: want a folder, new or of this sequence")
    names = {folder.name for folder in folders}
    for entry in sorted(out.iterdir()) if out.exists() else []:
        if re.match(r"\d+-", entry.name) and entry.name not in names:
            raise StudyError(
                f"{out} holds {entry.name}, which is not of this sequence ({', '.join(names)}): "
                f"{finished.INSTEAD}"
            )
