"""A whole study from Python: `compare` does what the command does and returns the run; `open_run`
opens an old one."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechforget.checkpoints import Checkpoint, Pair, Sequence
from mechforget.errors import StudyError, TaskError
from mechforget.measures.running import NAMES, running
from mechforget.study import export, verdict
from mechforget.study.run import run, to_stderr
from mechforget.study.settings import Study, study
from mechforget.study.store import Store

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from mechforget.tasks import Task

REFERENCES = ("pre", "post", "control_twin", "control_old")
TASKS = ("task", "new_task")
LISTS = ("measures", "sites", "between")


def compare(
    pre: str | Path | Checkpoint,
    post: str | Path | Checkpoint,
    task: str | Path | Task,
    *,
    out: str | Path = "run",
    say: Callable[[str], None] = to_stderr,
    **options: Any,
) -> Run:
    """Which heads carry what fine-tuning made pre forget? What `mechforget compare` does.

    Measures what the folder `out` doesn't hold yet: a run that was cut off goes on, and a finished
    one is only read. How models run is as `use` said it, unless an option says otherwise.
    Args: pre, post: a folder, hub name, LoRA adapter or .gguf file, or an open checkpoint. task: a
        file, builtin:capital, hub:org/name, a datasets folder, or a Task as it was loaded. out: the
        run's folder. say: is given each line of progress; the default writes to stderr.
        options: the command's, with underscores: new_task, prompts, measures ("all", or names),
        sites, screen, few_shot, seed, ..., and backend, device, dtype, memory.
    Returns: the finished run: `.verdict`, `.table(name)`, `.result(name)`, `.report()`.
    Raises: MechforgetError: what is wrong with an option, a checkpoint or the task, in one line,
        before anything is measured.

        run = mf.compare("org/base", "my/fine-tuned", "builtin:capital", prompts=20)
        run.verdict
        run.table("patching").nlargest(10, "effect")
    """
    given = {"pre": pre, "post": post, "task": task, **options}
    given |= {key: _reference(key, given[key]) for key in REFERENCES if given.get(key) is not None}
    given |= {key: _source(key, given[key]) for key in TASKS if given.get(key) is not None}
    given |= {key: _listed(key, given[key]) for key in LISTS if given.get(key) is not None}
    how = running(**{name: given.pop(name) for name in NAMES if name in given})
    given |= {name: getattr(how, name) for name in NAMES}
    settings, folder = study(**given), Path(out).expanduser()
    before = _finished(folder)
    store = run(settings, folder, say=say)
    if before:
        say(f"{folder} was finished {before} and is only read: to measure again, give another out")
    return Run(store)


def open_run(path: str | Path) -> Run:
    """A run that `compare`, here or in the terminal, has made, or begun.

    Raises: StudyError: the folder is no run.
    """
    return Run(Store(Path(path).expanduser()))


class Run:
    """A run's folder: its verdict, its tables as pandas, its results as xarray, its report."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._store.path

    @property
    def verdict(self) -> verdict.Verdict:
        """What the run says in words; it prints as its sentence. `.lines` and `.warnings` are what
        the terminal says before it.

        Raises: StudyError: forgetting was not measured yet.
        """
        return verdict.verdict(self._store)

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that `table` can make of this run."""
        return tuple(export.available(self._store))

    def table(self, name: str) -> pd.DataFrame:
        """A table as `mechforget export` writes it: one row per metric, direction, site, layer and
        head, with estimate, interval, share, p and q.

        Raises: StudyError: this run has none of that name; it says which there are.
        """
        return export.table(self._store, name)

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the stored results that `result` reads."""
        return tuple(self._store.finished)

    def result(self, name: str) -> xr.Dataset:
        """A stored result: named axes, and a value for every prompt.

        Raises: StudyError: this run did not measure it; it says what it did.
        """
        return self._store.get(name)

    def report(self, path: str | Path | None = None) -> Path:
        """Writes the report, one HTML file that needs no network, and returns its path.

        path: a file; None: report.html in the run's folder.
        Raises: StudyError: no folder to write it to, or forgetting was not measured yet.
        """
        from mechforget.views.bundle import bundle
        from mechforget.views.report import write

        file = self.path / "report.html" if path is None else Path(path).expanduser()
        if file.is_dir() or not file.parent.is_dir():
            raise StudyError(f"report {file}: want a file in a folder that exists")
        write(bundle(self._store), file)
        return file

    def __repr__(self) -> str:
        settings, manifest = self._store.manifest["settings"], self._store.manifest
        state = "" if manifest.get("complete") else ", not finished: compare goes on with it"
        return "\n".join(
            [
                f"Run {str(self.path)!r}{state}",
                f"  {settings['pre']} -> {settings['post']}, task {settings['task']}, "
                f"{len(manifest.get('prompts', ()))} prompts",
                f"  .tables: {', '.join(self.tables) or 'none yet'}",
                f"  .results: {', '.join(self.results) or 'none yet'}",
                "  .verdict, .table(name), .result(name), .report()",
            ]
        )


def _finished(folder: Path) -> str:
    """When a run in this folder was begun, if it is finished."""
    if not (folder / "manifest.json").is_file():
        return ""
    manifest = Store(folder).manifest
    return f"before (begun {manifest.get('created')})" if manifest.get("complete") else ""


def _reference(key: str, given: Any) -> Any:
    """A checkpoint as a study names it."""
    if isinstance(given, Pair | Sequence):
        kind = type(given).__name__
        raise StudyError(
            f"compare: {key} is a {kind}: give its checkpoints, compare(pre, post, task)"
            + (", and those between as between=[...]" if kind == "Sequence" else "")
        )
    return given.ref if isinstance(given, Checkpoint) else _text(given)


def _text(given: Any) -> Any:
    return str(given) if isinstance(given, Path) else given


def _listed(key: str, given: Any) -> Any:
    """One name, or several as the command takes them, stand for a list."""
    if isinstance(given, str):
        return (given,) if key == "between" else tuple(given.replace(",", " ").split())
    if key == "between":
        return tuple(_reference(key, one) for one in given)
    return given


def _source(key: str, given: Any) -> Any:
    """A task as a study names it: a Task by its source, if that gives the same rows again."""
    from mechforget import tasks

    if not isinstance(given, tasks.Task):
        return _text(given)
    try:
        same = tasks.load(given.source).rows.equals(given.rows)
    except TaskError:
        same = False
    if not same:
        raise StudyError(
            f"compare: {key}: a run can be repeated, and {given.source!r} doesn't give these "
            f"{len(given)} rows: save them (task.rows.to_json('task.jsonl', orient='records', "
            "lines=True)) and give that file, or give the source with prompts=... and few_shot=..."
        )
    return given.source


def _signature() -> Signature:
    """compare's own parameters, then every option of a study: for help, and completion."""
    *first, _ = signature(compare).parameters.values()
    names = {parameter.name for parameter in first}
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
        for name, field in Study.model_fields.items()
        if name not in names
    ]
    return Signature([*first, *options], return_annotation=Run)


compare.__signature__ = _signature()  # type: ignore[attr-defined]
