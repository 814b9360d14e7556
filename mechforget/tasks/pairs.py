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
    return "clean" in _columns(records)


def rows(records: Records, source: str, answer: str = "answer") -> Records:
    """The rows with `prompt`, `answer`, `corrupted` and, if there is one, `wrong`.

    Published files call these columns by several names: the first one that is present is used, in
    upper or lower case, unless `answer` names a column. The source's own columns are kept. The
    answer to the corrupted prompt is the wrong answer to the clean one. Whether both prompts have
    as many tokens is checked later, in `counterparts`.
    Raises: TaskError: there is no corrupted prompt or no answer, or answers are token ids.
    """
    columns = _columns(records)
    has = ", ".join(map(repr, list(columns.values())[:20]))
    taken = {
        "prompt": columns["clean"],
        "corrupted": _first(columns, CORRUPTED),
        "answer": _first(columns, RIGHT if answer == "answer" else (answer.lower(),)),
        "wrong": _first(columns, WRONG),
    }
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


def _columns(records: Records) -> dict[str, str]:
    """Lower-case name -> the file's own."""
    return {name.strip().lower(): name for record in records for name in record}


def _first(columns: dict[str, str], names: tuple[str, ...]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)
