"""SEQUENCE.toml: what `mechforget train` reads.

    base = "HuggingFaceTB/SmolLM2-135M-Instruct"   # θ₀: anything that `checkpoints.open` takes
    out = "runs/sequence"                          # θ_t goes into out/t-NAME
    seed = 0
    method = "full"                                # or "lora", with rank, alpha, targets if need be

    [[old]]                                        # scored at every θ_t, never trained; if any
    source = "builtin:capital"

    [[tasks]]                                      # trained in this order, and scored at every θ_t
    source = "builtin:currency"
    steps = 30
    learning_rate = 1e-4

A task may also have what `tasks.load` takes: `name`, `few_shot`, `prompt`, `answer`, `template`; a
trained one `batch_size` and `warmup_steps`. Paths start at the current folder.
"""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mechforget.errors import MechforgetError, StudyError
from mechforget.training.settings import Method, Settings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from mechforget.tasks import Task


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Scored(Strict):
    """The arguments of `tasks.load`."""

    source: str
    name: str | None = None
    few_shot: int = 0
    prompt: str = "prompt"
    answer: str = "answer"
    template: str | None = None

    def load(self) -> "Task":
        from mechforget import tasks

        said = {name: getattr(self, name) for name in Scored.model_fields}
        return tasks.load(said.pop("source"), **said)


class Trained(Scored):
    steps: int
    learning_rate: float
    batch_size: int = Settings.batch_size
    warmup_steps: int = Settings.warmup_steps


class SequenceFile(Strict):
    base: str
    out: str
    tasks: list[Trained] = Field(min_length=1)
    old: list[Scored] = []
    method: Method = Settings.method
    seed: int = Settings.seed
    heads: list[str] | None = None
    rank: int | None = None
    alpha: int | None = None
    targets: list[str] | None = None

    def settings(self, task: Trained) -> Settings:
        return Settings(
            steps=task.steps,
            learning_rate=task.learning_rate,
            method=self.method,
            batch_size=task.batch_size,
            warmup_steps=task.warmup_steps,
            seed=self.seed,
            heads=None if self.heads is None else tuple(self.heads),
            rank=self.rank,
            alpha=self.alpha,
            targets=None if self.targets is None else tuple(self.targets),
        )


def read(path: str | Path) -> SequenceFile:
    """Raises: StudyError: the file doesn't exist, isn't TOML, or has a wrong key (the first is
    named)."""
    path = Path(path).expanduser()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror}: want a sequence's TOML file") from error
    except ValueError as error:  # TOML's and UTF-8's
        raise StudyError(f"{path} is not TOML: {error}") from error
    try:
        said = SequenceFile.model_validate(raw)
    except ValidationError as error:
        found = error.errors()  # for a misspelt key pydantic also reports the missing one
        first = min(found, key=lambda one: one["type"] != "extra_forbidden")
        raise StudyError(f"{path}: {_line(first)}") from error
    for number, task in enumerate(said.tasks, start=1):
        try:
            said.settings(task)
        except MechforgetError as error:
            raise StudyError(f"{path}: task {number} ({task.source}): {error}") from error
    return said


def _line(error: "ErrorDetails") -> str:
    *parents, _ = error["loc"]
    where = ""
    for part in error["loc"]:
        where += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    where = where.removeprefix(".")
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "extra_forbidden":
        model = {"tasks": Trained, "old": Scored}[str(parents[0])] if parents else SequenceFile
        return f"{where}: no such key: there are {', '.join(model.model_fields)}"
    what = error["msg"][0].lower() + error["msg"][1:]
    return f"{where} = {ascii(error['input'])[:60]}: {what}"
