"""Tasks in order: θ_t from θ_{t-1}, a checkpoint after each, and the score matrix R[t, i]."""

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mechforget import checkpoints, tasks
from mechforget.errors import StudyError
from mechforget.training.finetune import finetune
from mechforget.training.score import score
from mechforget.training.settings import Method, Settings

if TYPE_CHECKING:
    import xarray as xr


class Stage(BaseModel):
    """One task of the sequence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    steps: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    batch_size: Annotated[int, Field(ge=1)] = 16
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    few_shot: Annotated[int, Field(ge=0)] = 0


class SequenceFile(BaseModel):
    """SEQUENCE.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    out: str
    tasks: Annotated[tuple[Stage, ...], Field(min_length=1)]
    method: Method = "full"
    seed: Annotated[int, Field(ge=0)] = 0
    rank: Annotated[int, Field(ge=1)] | None = None
    alpha: Annotated[int, Field(ge=1)] | None = None
    targets: tuple[str, ...] | None = None


def train(path: str | Path) -> "xr.Dataset":
    """Trains what `out` does not hold yet; everything is checked before the first step.

    Returns: `log_prob` (nats), `correct` (checkpoint, task): R[t, i], means over prompts; row 0 is
        the base. Also kept as `out/scores.json`.
    Raises: StudyError: the file, or what `out` holds. CheckpointError, TaskError.
    Source: Lopez-Paz & Ranzato 2017, 1706.08840.
    """
    import xarray as xr

    file = Path(path).expanduser()
    said = read(file)
    out = Path(said.out).expanduser()
    loaded = [tasks.load(s.source, few_shot=s.few_shot, seed=said.seed) for s in said.tasks]
    base = checkpoints.open(said.base)
    base.check()
    for task in loaded:
        task.encode(base.tokenizer())
    settings = [_settings(said, stage) for stage in said.tasks]
    names, rows, reached = ["base"], [score(base, loaded)], base
    for t, (task, how) in enumerate(zip(loaded, settings, strict=True), start=1):
        names.append(f"{t}-{task.name.replace('/', '_')}")
        reached = checkpoints.open(finetune(reached, task, out / names[-1], how))
        rows.append(score(reached, loaded))
        found = {
            k: (("checkpoint", "task"), [[float(x[k].mean()) for x in row] for row in rows])
            for k in ("log_prob", "correct")
        }
        matrix = xr.Dataset(found, {"checkpoint": names, "task": [x.name for x in loaded]})
        text = json.dumps(matrix.to_dict(), indent=1) + "\n"
        (out / "scores.json").write_text(text, "utf-8")
    return matrix


def read(file: Path) -> SequenceFile:
    """Raises: StudyError: no TOML, or the key that is wrong."""
    try:
        return SequenceFile(**tomllib.loads(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StudyError(f"{file}: {error}; want a TOML file with base, out and tasks") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise StudyError(f"{file}: {key}: {first['msg']} (got {first.get('input')!r})") from None


def _settings(said: SequenceFile, stage: Stage) -> Settings:
    return Settings(
        steps=stage.steps,
        learning_rate=stage.learning_rate,
        method=said.method,
        batch_size=stage.batch_size,
        warmup_steps=stage.warmup_steps,
        seed=said.seed,
        rank=said.rank,
        alpha=said.alpha,
        targets=said.targets,
    )
