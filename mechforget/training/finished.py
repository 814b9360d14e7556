"""The folder of a finished training: it is complete or doesn't exist, and says how it was made."""

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechforget import __version__
from mechforget.checkpoints import Checkpoint
from mechforget.errors import StudyError
from mechforget.training import examples
from mechforget.training.settings import Settings

if TYPE_CHECKING:
    from mechforget.tasks import Task

RECORD = "training.json"
PACKAGES = ("torch", "transformers", "peft", "accelerate")
INSTEAD = "choose another out, or remove it"


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, which is renamed to `out` at the end. A process that is killed
    leaves `.NAME.partial`, which nothing takes for a checkpoint and the next training removes."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turns safetensors' own error for a full disk into an OSError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(out)) from error


def write(folder: Path, base: Checkpoint, task: "Task", settings: Settings, **more: Any) -> None:
    """Write training.json: all that is needed to train this again, and `more` about its course."""
    record = {
        "base": base.ref if base.kind == "hub" else str(base.path),
        "base_digest": base.digest(),
        "task": examples.description(task),
        "settings": asdict(settings),
        "versions": {"mechforget": __version__} | {name: version(name) for name in PACKAGES},
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        **more,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def is_done(out: Path, base: Checkpoint | None, task: "Task", settings: Settings) -> bool:
    """Whether `out` already holds this training. base: None if the base isn't trained yet.

    Raises: StudyError: `out` exists but holds something else; the error names all that differs.
    """
    if not out.exists():
        return False
    file = out / RECORD
    if not file.is_file():
        raise StudyError(f"{out} exists and has no {RECORD}: {INSTEAD}")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        found, digest, source = record["settings"], record["base_digest"], record["task"]["source"]
        rows = record["task"]["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{file} is damaged ({error}): remove {out}, to train it again") from error
    wanted = json.loads(json.dumps(asdict(settings)))  # as it would be read back
    differ = [
        f"{name} = {found.get(name)}, not {value}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if rows != examples.digest(task):
        differ.append(f"{source}, not {task.source}" if source != task.source else "other rows")
    if base is not None and digest != base.digest():
        differ.append(f"a base with other weights ({record['base']})")
    if differ:
        raise StudyError(f"{out} was trained with {'; '.join(differ)}: {INSTEAD}")
    return True
