"""Clean/corrupt counterparts: the same prompt about another subject, with as many tokens.

For each row the next row (cyclic) is taken that has another subject with as many tokens and another
answer, and whose subject keeps the prompt's number of tokens the same. Rows whose answer has as
many tokens as this row's come first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

from mechforget.errors import TaskError
from mechforget.tasks.encoding import gap

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase


def counterparts(
    rows: pd.DataFrame, source: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[pd.DataFrame, str]:
    """A task's rows with `corrupted` on each: str, or None where no other row fits; and a note that
    says how many have none.

    Where no wrong answer is given, it is the answer that belongs to the corrupted prompt. A given
    corrupted prompt is kept if it has as many tokens as the prompt.
    Raises: TaskError: there is neither a `subject` nor a `corrupted` column.
    Blind spot: a subject that the prompt spells differently (inflected, other case) is not found.
    """
    if not {"subject", "corrupted"} & set(rows.columns):
        raise TaskError(
            f"{source}: no column 'subject' to swap and no 'corrupted': "
            f"add one of them for clean/corrupt prompts"
        )
    find = _Partners(rows, tokenizer)
    corrupted: list[str | None] = []
    wrong = _column(rows, "wrong")
    for i, given in enumerate(_column(rows, "corrupted")):
        text, answer = given, None
        if given is None:
            text, answer = find.partner(i)
        elif find.count(given) != find.count(find.prompts[i]):
            text = None
        corrupted.append(text)
        wrong[i] = answer if wrong[i] is None else wrong[i]
    lack = corrupted.count(None)
    note = (
        f"{lack} of {len(rows)} prompts have no corrupted counterpart with as many tokens"
        if lack
        else "every prompt has a corrupted counterpart with as many tokens"
    )
    return rows.assign(corrupted=corrupted, wrong=wrong), note


class _Partners:
    """Finds for a row another one whose subject can replace its own."""

    def __init__(self, rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> None:
        @cache
        def count(text: str, special: bool = True) -> int:
            return len(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

        self.count = count
        self.prompts: list[str] = rows["prompt"].tolist()
        self.answers: list[str] = rows["answer"].tolist()
        self.subjects = _column(rows, "subject")
        self.prefixes = _column(rows, "few_shot")
        self.same: dict[int, list[tuple[int, str]]] = defaultdict(list)  # size -> row, subject
        for i, subject in enumerate(self.subjects):
            if subject:
                self.same[self._size(subject)].append((i, subject))

    def partner(self, i: int) -> tuple[str | None, str | None]:
        """The corrupted prompt and its answer; both are None if there is none."""
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
        return self.count(" " + subject, False)  # as it is inside a sentence

    def _answer_size(self, i: int, j: int) -> int:
        return self.count(gap(self.prompts[i], self.answers[j]) + self.answers[j], False)


def _swapped(prompt: str, prefix: str, old: str, new: str) -> str | None:
    """The prompt in which, after the few-shot prefix, every `old` that is a whole word is replaced
    by `new`; None if there is none."""
    before = r"(?<!\w)" if _lettered(old[0]) else ""  # not the Niger in Nigeria
    after = r"(?!\w)" if _lettered(old[-1]) else ""
    body, found = re.subn(before + re.escape(old) + after, lambda _: new, prompt[len(prefix) :])
    return prefix + body if found else None


def _lettered(character: str) -> bool:
    """Whether it belongs to a script with spaces between words: it has a case or is a digit."""
    return character.isdigit() or character.lower() != character.upper()


def _column(rows: pd.DataFrame, name: str) -> list[str | None]:
    return rows[name].tolist() if name in rows else [None] * len(rows)
