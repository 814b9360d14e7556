"""Clean/corrupted pairs: a table with the columns `clean`, `corrupted` and their answers."""

from __future__ import annotations

from mechforget.errors import TaskError
from mechforget.tasks.files import Records

CORRUPTED = ("corrupted", "corrupt", "corrupted_prompt")
RIGHT = ("answer", "correct_answer", "clean_answer", "answer_token", "correct", "right", "label")
WRONG = (
    "wrong",
    "wrong_answer",
    "incorrect_answer",
    "corrupted_answer",
    "corrupt_answer",
    "wrong_token",
    "wrong_answer_token",
    "incorrect",
)


def is_pairs(records: Records) -> bool:
    return any("clean" in record for record in records)


def rows(records: Records, source: str, answer: str = "answer") -> Records:
    """The rows with `prompt`, `answer`, `corrupted` and, where there is one, `wrong`.

    Of the published names for a column the first present counts; `answer` goes before them.
    The source's own columns stay. A corrupted prompt is aligned with its clean one or not: see
    `counterparts`. The answer that belongs to the corrupted prompt is the wrong one for the clean.
    Raises: TaskError: no corrupted prompt, no answer; answers given as token ids.
    """
    columns = list(dict.fromkeys(name for record in records for name in record))
    taken = {
        "prompt": "clean",
        "corrupted": _first(columns, CORRUPTED),
        "answer": _first(columns, (answer, *RIGHT)),
        "wrong": _first(columns, WRONG),
    }
    has = ", ".join(repr(name) for name in columns[:20])
    if taken["corrupted"] is None:
        raise TaskError(f"{source}: 'clean' without 'corrupted' among {has}: add that column")
    if taken["answer"] is None:
        ids = [name for name in columns if name.endswith(("_idx", "_id"))]
        hint = f"{ids[0]!r} holds token ids of one model: write the text" if ids else "add 'answer'"
        raise TaskError(f"{source}: no column with the clean prompt's answer among {has}: {hint}")
    return [
        {**record, **{name: record.get(column) for name, column in taken.items() if column}}
        for record in records
    ]


def _first(columns: list[str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in columns), None)
