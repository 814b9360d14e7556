"""Opens a task from any of its sources."""

from __future__ import annotations

from pathlib import Path

from mechforget.errors import TaskError
from mechforget.tasks import builtin, files, hub, pairs, relations
from mechforget.tasks.task import Task


def load(
    source: str | Path,
    *,
    name: str | None = None,
    few_shot: int = 0,
    seed: int = 0,
    prompt: str = "prompt",
    answer: str = "answer",
    template: str | None = None,
) -> Task:
    """A task from a file, a folder, the hub or the built-in relations.

    source: "builtin:capital"; "hub:org/name[:split]"; a `datasets` folder, "folder[:split]"; a
        .jsonl, .csv or .parquet file of rows, or of clean/corrupted pairs if it has a column
        `clean`; a .json relation file with `samples`.
    few_shot, seed: the number of examples before each prompt, see `Task.few_shot`.
    prompt, answer: the names of these columns in a file of rows. Other columns are kept; `wrong`,
        `corrupted`, `subject` and `template` have the meaning that `Task` describes.
    template: for relations: a text with {} for the subject, or "all". By default a built-in
        relation uses its first template, and a relation file uses all of its own.
    Raises: TaskError, in one line.
    """
    import pandas as pd

    source = str(source)
    notes: tuple[str, ...] = ()
    if source.startswith("builtin:"):
        _refuse(source, prompt=prompt != "prompt", answer=answer != "answer")
        title = source.removeprefix("builtin:")
        records, notes = builtin.relation(title, template)
    elif source.lower().endswith(".json"):
        _refuse(source, prompt=prompt != "prompt", answer=answer != "answer")
        records, title = relations.read(_existing(source), template)
    else:
        _refuse(source, template=template is not None)
        if source.startswith("hub:") or hub.is_folder(source):
            records, title = hub.read(source)
        else:
            path = _existing(source)
            title, records = path.stem, files.read(path)
        if prompt == "prompt" and pairs.is_pairs(records):
            records = pairs.rows(records, source, answer)
        else:
            records = _named(records, source, prompt=prompt, answer=answer)
    rows = pd.DataFrame(records, dtype=object)  # Task checks the cells, then finds their types
    task = Task(name or title, rows, source, notes)
    return task.few_shot(few_shot, seed)


def _existing(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    hint = f"; there is builtin:{source}" if source in builtin.NAMES else ""
    raise TaskError(
        f"{source}: no such task file or folder{hint}: want a .jsonl, .csv, .parquet or .json "
        f"file, a datasets folder, builtin:NAME or hub:org/name"
    )


def _named(records: files.Records, source: str, **columns: str) -> files.Records:
    """The records with the chosen columns also under our names."""
    for ours, theirs in columns.items():
        if ours == theirs or not records:
            continue
        if not any(theirs in record for record in records):
            has = ", ".join(map(repr, list(records[0])[:20]))
            raise TaskError(f"{source}: {ours}={theirs!r}: no such column: there are {has}")
        records = [{**record, ours: record.get(theirs)} for record in records]
    return records


def _refuse(source: str, **given: bool) -> None:
    for option, is_given in given.items():
        if is_given:
            raise TaskError(
                f"{source}: {option}= does not apply to this kind of task: leave it out"
            )
