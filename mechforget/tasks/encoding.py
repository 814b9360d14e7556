"""From prompts and answers to token ids: the tokenizer's own, with nothing of a backend's added."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from mechforget.errors import TaskError
from mechforget.tasks.encoded import Encoded

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[int, ...]


def gap(prompt: str, answer: str) -> str:
    """What is put between prompt and answer: a space, unless one of them has whitespace there."""
    return "" if prompt[-1:].isspace() or answer[:1].isspace() else " "


def encode(
    table: pd.DataFrame, cluster: np.ndarray, source: str, tokenizer: PreTrainedTokenizerBase
) -> Encoded:
    """A task's rows as token ids. What the tokenizer itself adds to a prompt (BOS) is kept.

    table: has columns `prompt`, `answer` and perhaps `wrong`. cluster: int64 (prompt,). source: is
    named in errors. One space is put before the answer unless the prompt ends or the answer begins
    with whitespace. Where no wrong answer is given, it is the next row's (cyclic) different answer
    with as many tokens, if there is one. The right and the wrong answer share a row if they need
    the same input, or if one input is the beginning of the other.
    Raises: TaskError: a prompt or an answer has no tokens, or a right and a wrong answer have the
        same tokens.
    """
    prompts = table["prompt"].tolist()
    answers = table["answer"].tolist()
    given = table["wrong"].tolist() if "wrong" in table else [None] * len(table)

    starts = _tokenized(tokenizer, prompts, add_special_tokens=True)
    # Any answer may become any prompt's wrong one, and its space depends on how the prompt ends.
    pairs = [(p, a) for p in {p[-1:].isspace(): p for p in prompts}.values() for a in answers]
    pairs += [(p, a) for p, a in zip(prompts, given, strict=True) if a is not None]
    ends = _tokenized(tokenizer, (gap(p, a) + a for p, a in pairs), add_special_tokens=False)
    wrong_of = _default_wrong(prompts, answers, ends)

    rows: list[tuple[int, int, Tokens]] = []  # prompt, its length, tokens
    reads: list[tuple[int, int, int, int, bool]] = []  # row, position, target, prompt, wrong
    for i, (prompt, answer, wrong) in enumerate(zip(prompts, answers, given, strict=True)):
        start, right = starts[prompt], ends[gap(prompt, answer) + answer]
        other = wrong_of(i) if wrong is None else ends[gap(prompt, wrong) + wrong]
        where = f"{source}: row {i + 1}"
        for name, made in (("prompt", start), ("answer", right), ("wrong answer", other)):
            if made is not None and not made:
                raise TaskError(f"{where}: the tokenizer makes no token of its {name}: change it")
        if right == other:
            raise TaskError(f"{where}: right and wrong answer are the same tokens: change one")
        sides = [(right, False)] if other is None else [(right, False), (other, True)]
        fed = [side[:-1] for side, _ in sides]  # the last token is never an input
        longest = max(fed, key=len)
        if all(longest[: len(part)] == part for part in fed):  # one continues the other
            fed = [longest]
        for k, (side, is_wrong) in enumerate(sides):
            row = len(rows) + min(k, len(fed) - 1)
            for j, target in enumerate(side):
                reads.append((row, len(start) - 1 + j, target, i, is_wrong))
        rows += [(i, len(start), start + part) for part in fed]

    row_prompt, prompt_length, _ = zip(*rows, strict=True)
    length = np.array([len(tokens) for *_, tokens in rows])
    ids = np.full((len(rows), length.max()), _pad(tokenizer), dtype=np.int64)
    for line, (*_, tokens) in zip(ids, rows, strict=True):
        line[: len(tokens)] = tokens
    read_row, read_position, read_target, read_prompt, read_wrong = np.array(reads).T
    return Encoded(
        ids=ids,
        length=length,
        row_prompt=np.array(row_prompt),
        prompt_length=np.array(prompt_length),
        read_row=read_row,
        read_position=read_position,
        read_target=read_target,
        read_prompt=read_prompt,
        read_wrong=read_wrong.astype(bool),
        cluster=cluster,
    )


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, add_special_tokens: bool
) -> dict[str, Tokens]:
    distinct = list(dict.fromkeys(texts))
    made = tokenizer(distinct, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    return {text: tuple(ids) for text, ids in zip(distinct, made, strict=True)}


def _default_wrong(
    prompts: list[str], answers: list[str], ends: dict[str, Tokens]
) -> Callable[[int], Tokens | None]:
    """A function of a row's number: the next (cyclic) different answer with as many tokens."""

    def tokens(prompt: str, answer: str) -> Tokens:
        return ends[gap(prompt, answer) + answer]

    rows: dict[tuple[bool, int], list[int]] = defaultdict(list)  # (prompt ends in space, count)
    for space, prompt in {p[-1:].isspace(): p for p in prompts}.items():
        for j, answer in enumerate(answers):
            rows[space, len(tokens(prompt, answer))].append(j)

    def wrong_of(i: int) -> Tokens | None:
        prompt, right = prompts[i], tokens(prompts[i], answers[i])
        same = rows[prompt[-1:].isspace(), len(right)]
        after = bisect_right(same, i)
        for j in chain(islice(same, after, None), islice(same, after)):
            if answers[j].strip() != answers[i].strip() and tokens(prompt, answers[j]) != right:
                return tokens(prompt, answers[j])
        return None

    return wrong_of


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return 0
