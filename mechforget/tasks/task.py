"""A task: prompts, their right and wrong answers, and what was done to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from mechforget.errors import TaskError
from mechforget.tasks import encoding
from mechforget.tasks.counterparts import counterparts
from mechforget.tasks.encoded import Encoded

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

TEXT = ("prompt", "answer", "wrong", "corrupted", "subject", "template", "few_shot")


@dataclass(frozen=True, eq=False)
class Task:
    """Prompts to score, one per row.

    rows: with a RangeIndex and the columns `prompt` and `answer` (str); if the source has them also
        `wrong`, `corrupted` (a counterpart of the prompt), `subject`, `template` (str or None) and
        `few_shot`, the examples that the prompt begins with. Numbers in these columns become text.
        Other columns are kept as they are.
    source: where the task comes from. notes: what was done to the rows, one sentence each.
    Raises: TaskError: there are no rows, a column is missing or appears twice, a cell is not text
        or not valid text, an answer is empty, or a wrong answer equals the right one.
    """

    name: str
    rows: pd.DataFrame
    source: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", _checked(self.rows, self.source))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def clusters(self) -> np.ndarray:
        """int64 (prompt,): the cluster of each row, which is the unit of resampling. Rows with the
        same subject, or without subjects the same prompt and answer, share a cluster. Clusters are
        numbered in the order in which they appear."""
        subjects = self.rows["subject"] if "subject" in self.rows else [None] * len(self)
        pairs = zip(self.rows["prompt"], self.rows["answer"], strict=True)
        number: dict[object, int] = {}
        keys = (p if s is None else s for s, p in zip(subjects, pairs, strict=True))
        return np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> Encoded:
        """The task as token ids: see `encoding.encode`."""
        return encoding.encode(self.rows, self.clusters, self.source, tokenizer)

    def counterparts(self, tokenizer: PreTrainedTokenizerBase) -> Task:
        """The task with a `corrupted` prompt per row: see `counterparts.counterparts`."""
        rows, note = counterparts(self.rows, self.source, tokenizer)
        return replace(self, rows=rows, notes=(*self.notes, note))

    def select(self, keep: np.ndarray, note: str) -> Task:
        """The rows in `keep` (a bool per row, or row numbers); `note` says why."""
        rows = self.rows.iloc[np.arange(len(self))[keep]]
        if not len(rows):
            raise TaskError(f"{self.source}: no prompt is left ({note}): nothing to measure")
        return replace(self, rows=rows, notes=(*self.notes, note))

    def few_shot(self, k: int, seed: int = 0) -> Task:
        """The task with k examples, "prompt answer" on one line each, before every prompt.

        The examples come from k clusters drawn with `seed`. These clusters are no longer scored, so
        that no scored answer appears in its own prompt.
        Raises: TaskError: k < 0, or no cluster would be left.
        """
        clusters = self.clusters
        n = int(clusters.max()) + 1
        if not 0 <= k < n:
            raise TaskError(
                f"{self.source}: few_shot={k} of {n} different subjects: want 0 to {n - 1}, "
                f"since examples are not scored"
            )
        if k == 0:
            return self
        draw = np.random.default_rng(seed)
        chosen = draw.choice(n, size=k, replace=False)
        examples = self.rows.iloc[[draw.choice(np.flatnonzero(clusters == c)) for c in chosen]]
        prefix = "".join(
            f"{prompt}{encoding.gap(prompt, answer)}{answer}\n"
            for prompt, answer in zip(examples["prompt"], examples["answer"], strict=True)
        )
        keep = ~np.isin(clusters, chosen)
        rows = self.rows[keep].copy()
        before = rows["few_shot"] if "few_shot" in rows else [""] * len(rows)
        rows["few_shot"] = [prefix + (old or "") for old in before]
        for column in {"prompt", "corrupted"} & set(rows.columns):
            rows[column] = [None if text is None else prefix + text for text in rows[column]]
        note = f"{k} examples (seed {seed}) stand before each prompt; their {(~keep).sum()} rows "
        return replace(self, rows=rows, notes=(*self.notes, note + "are not scored"))


def _checked(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    """A copy whose text columns hold Python strings or None. Errors name the row."""
    import pandas as pd

    if not len(rows):
        raise TaskError(f"{source}: no rows: want at least one prompt with its answer")
    if rows.columns.has_duplicates:
        twice = rows.columns[rows.columns.duplicated()][0]
        raise TaskError(f"{source}: column {twice!r} appears twice: give each its own name")
    for column in ("prompt", "answer"):
        if column not in rows:
            has = ", ".join(repr(name) for name in list(rows.columns)[:20])
            raise TaskError(
                f"{source}: no column {column!r} among {has}: "
                f"rename one, or name it with {column}=..."
            )
    rows = rows.reset_index(drop=True)  # a copy: the caller's frame doesn't change
    for column in rows.columns:
        cells = rows[column].tolist()
        for i, cell in enumerate(cells, 1):
            if isinstance(cell, str) and not _encodable(cell):
                raise TaskError(
                    f"{source}: row {i}: {column!r} has a lone surrogate, which is no valid text: "
                    f"{_show(cell)}"
                )
        if column not in TEXT:
            rows[column] = rows[column].infer_objects()
            continue
        cells = [_text(cell, source, column, i) for i, cell in enumerate(cells, 1)]
        if column in ("wrong", "corrupted"):
            cells = [cell or None for cell in cells]
        rows[column] = pd.Series(cells, dtype=object)  # pandas' own strings have no None
    wrongs = rows["wrong"] if "wrong" in rows else [None] * len(rows)
    for i, (prompt, answer, wrong) in enumerate(
        zip(rows["prompt"], rows["answer"], wrongs, strict=True), 1
    ):
        if prompt is None or not answer:
            lacks = "prompt" if prompt is None else "answer"
            raise TaskError(f"{source}: row {i} has no {lacks}: fill it in, or leave the row out")
        if wrong is not None and wrong.strip() == answer.strip():
            raise TaskError(
                f"{source}: row {i} has {_show(answer)} as right and as wrong answer: change one"
            )
    return rows


def _text(cell: object, source: str, column: str, row: int) -> str | None:
    import pandas as pd

    if isinstance(cell, str):
        return str(cell)
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return None
    number = (int, float, Decimal, np.integer, np.floating)
    if not isinstance(cell, number) or isinstance(cell, bool):
        kind = type(cell).__name__
        raise TaskError(f"{source}: row {row}: {column!r} is a {kind}: want text or a number")
    return None if cell != cell else str(cell)  # NaN is how tables write a missing cell


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _show(text: str) -> str:
    """The text in one short line, without control characters."""
    return ascii(text if len(text) <= 40 else text[:40] + "...")
