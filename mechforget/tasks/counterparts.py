"""Clean/corrupt counterparts: the same prompt about another subject, as many tokens long.

For each row the next row (cyclic) that has another subject of the same number of tokens, another
answer, and keeps the prompt's number of tokens when its subject is put in; among those, one whose
answer has as many tokens as this row's goes first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from mechforget.errors import TaskError
from mechforget.tasks.task import gap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mechforget.tasks.task import Task


def counterparts(task: Task, tokenizer: PreTrainedTokenizerBase) -> Task:
    """The task with `corrupted` on every row: str, or None where no row fits (said in the notes).

    Where no wrong answer is given, the answer that belongs to the corrupted prompt becomes it.
    A corrupted prompt that the source gave stays, if it has as many tokens as the prompt.
    Raises: TaskError: neither a `subject` nor a `corrupted` column.
    Blind spot: a subject that the prompt spells otherwise (inflected, other case) is not found.
    """
    rows = task.rows
    if not {"subject", "corrupted"} & set(rows.columns):
        raise TaskError(
            f"{task.source}: no column 'subject' to swap and no 'corrupted': "
            f"add one of them for clean/corrupt prompts"
        )
    find = _Partners(task, tokenizer)
    corrupted: list[str | None] = []
    wrong = _column(task, "wrong")
    for i, given in enumerate(_column(task, "corrupted")):
        text, answer = given, None
        if given is None:
            text, answer = find.partner(i)
        elif find.count(given) != find.count(find.prompts[i]):
            text = None
        corrupted.append(text)
        wrong[i] = answer if wrong[i] is None else wrong[i]
    lack = corrupted.count(None)
    note = (
        f"{lack} of {len(task)} prompts have no corrupted counterpart with as many tokens"
        if lack
        else "every prompt has a corrupted counterpart with as many tokens"
    )
    rows = rows.assign(corrupted=corrupted, wrong=wrong)
    return replace(task, rows=rows, notes=(*task.notes, note))


class _Partners:
    """Looks for the row whose subject can replace another's."""

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
        @cache
        def count(text: str, special: bool = True) -> int:
            return len(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

        self.count = count
        self.prompts: list[str] = task.rows["prompt"].tolist()
        self.answers: list[str] = task.rows["answer"].tolist()
        self.subjects = _column(task, "subject")
        self.prefixes = _column(task, "few_shot")
        self.same: dict[int, list[tuple[int, str]]] = defaultdict(list)  # size -> row, subject
        for i, subject in enumerate(self.subjects):
            if subject:
                self.same[self._size(subject)].append((i, subject))

    def partner(self, i: int) -> tuple[str | None, str | None]:
        """The corrupted prompt and its answer, or twice None."""
        subject, n = self.subjects[i], len(self.prompts)
        if not subject:
            return None, None
        answer, size = self.answers[i].strip(), self._answer_size(i, i)
        others = [
            (self._answer_size(i, j) != size, (j - i) % n, j, other)
            for j, other in self.same[self._size(subject)]
            if other != subject and self.answers[j].strip() != answer
        ]
        for _, _, j, other in sorted(others):
            text = _swapped(self.prompts[i], self.prefixes[i] or "", subject, other)
            if text is not None and self.count(text) == self.count(self.prompts[i]):
                return text, self.answers[j]
        return None, None

    def _size(self, subject: str) -> int:
        return self.count(" " + subject, False)  # as it stands inside a sentence

    def _answer_size(self, i: int, j: int) -> int:
        return self.count(gap(self.prompts[i], self.answers[j]) + self.answers[j], False)


def _swapped(prompt: str, prefix: str, old: str, new: str) -> str | None:
    """The prompt with every `old` that stands on its own after the few-shot prefix replaced."""
    before = r"(?<!\w)" if _lettered(old[0]) else ""  # not the Niger in Nigeria
    after = r"(?!\w)" if _lettered(old[-1]) else ""
    body, found = re.subn(before + re.escape(old) + after, lambda _: new, prompt[len(prefix) :])
    return prefix + body if found else None


def _lettered(character: str) -> bool:
    """Of a script that puts spaces between words: with upper and lower case, or a digit."""
    return character.isdigit() or character.lower() != character.upper()


def _column(task: Task, name: str) -> list[str | None]:
    return task.rows[name].tolist() if name in task.rows else [None] * len(task)
