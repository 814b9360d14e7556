"""A task as token ids: what to feed a model, what to read off it, and the scores of what was read.

An input row is tok(prompt) + tok(answer) without its last token, as teacher forcing needs. Rows are
padded on the right, where causal attention never looks. Numpy only: every backend takes it as is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from mechforget.errors import TaskError
from mechforget.tasks.task import gap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mechforget.tasks.task import Task

Tokens = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Input rows and the reads on them; all arrays int64 but `read_wrong`.

    A read is "log p of token `target` given ids[row, : position + 1]", nats. Rows and reads lie in
    the order of their prompts, the right answer before the wrong one.
    """

    ids: np.ndarray  # [row, position], right-padded
    length: np.ndarray  # [row], tokens without padding
    row_prompt: np.ndarray  # [row], which prompt
    prompt_length: np.ndarray  # [row], tokens of the prompt: its last position is this - 1
    read_row: np.ndarray  # [read]
    read_position: np.ndarray  # [read]
    read_target: np.ndarray  # [read]
    read_prompt: np.ndarray  # [read]
    read_wrong: np.ndarray  # [read], bool: of the wrong answer
    cluster: np.ndarray  # [prompt], the unit of resampling

    @property
    def n_prompts(self) -> int:
        return len(self.cluster)

    @property
    def n_rows(self) -> int:
        return len(self.ids)

    @property
    def first_rows(self) -> np.ndarray:
        """[prompt]: the row that holds its right answer."""
        return np.searchsorted(self.row_prompt, np.arange(self.n_prompts))

    @property
    def n_answer(self) -> np.ndarray:
        """[prompt]: tokens of the right answer."""
        return np.bincount(self.read_prompt[~self.read_wrong], minlength=self.n_prompts)

    @property
    def has_wrong(self) -> np.ndarray:
        """[prompt], bool: whether there is a wrong answer to compare with."""
        return np.bincount(self.read_prompt[self.read_wrong], minlength=self.n_prompts) > 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What the report must say about these prompts."""
        lack = self.n_prompts - int(self.has_wrong.sum())
        if not lack:
            return ()
        return (
            f"{lack} of {self.n_prompts} prompts have no wrong answer (no other answer has as many "
            f"tokens): they count for log_prob and correct only",
        )

    def subset(self, prompts: np.ndarray) -> Encoded:
        """The prompts that `prompts` names (numbers, in that order, or bool per prompt): their
        rows and reads renumbered, padding trimmed to the longest. Clusters keep their number."""
        chosen = np.arange(self.n_prompts)[prompts]
        rows, row_prompt = _members(self.row_prompt, chosen)
        reads, read_prompt = _members(self.read_prompt, chosen)
        # A prompt's rows are neighbours in both, so a read's distance to the first of them stays.
        first_old = np.searchsorted(self.row_prompt, chosen)
        first_new = np.searchsorted(row_prompt, np.arange(len(chosen)))
        return Encoded(
            ids=self.ids[rows, : self.length[rows].max(initial=0)],
            length=self.length[rows],
            row_prompt=row_prompt,
            prompt_length=self.prompt_length[rows],
            read_row=self.read_row[reads] + (first_new - first_old)[read_prompt],
            read_position=self.read_position[reads],
            read_target=self.read_target[reads],
            read_prompt=read_prompt,
            read_wrong=self.read_wrong[reads],
            cluster=self.cluster[chosen],
        )

    def join(self, other: Encoded) -> Encoded:
        """Both tasks' prompts, the other's after these; clusters of the two stay apart."""
        width = max(self.ids.shape[1], other.ids.shape[1])
        pads = [np.pad(e.ids, ((0, 0), (0, width - e.ids.shape[1]))) for e in (self, other)]
        rows, prompts = self.n_rows, self.n_prompts
        clusters = int(self.cluster.max(initial=-1)) + 1

        def both(name: str, offset: int = 0) -> np.ndarray:
            return np.concatenate([getattr(self, name), getattr(other, name) + offset])

        return Encoded(
            ids=np.concatenate(pads),
            length=both("length"),
            row_prompt=both("row_prompt", prompts),
            prompt_length=both("prompt_length"),
            read_row=both("read_row", rows),
            read_position=both("read_position"),
            read_target=both("read_target"),
            read_prompt=both("read_prompt", prompts),
            read_wrong=np.concatenate([self.read_wrong, other.read_wrong]),
            cluster=both("cluster", clusters),
        )

    def score(self, log_prob: np.ndarray, top: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics of each prompt, from what was read.

        Args: log_prob: [..., read], nats. top: bool [..., read]: the target is the argmax.
        Returns: float64 [..., prompt]: `log_prob` = sum log p(right), nats; `logit_diff` = that
            - sum log p(wrong), nats; `correct`: 1 where every token of the right answer is the
            argmax; `preferred`: 1 where right > wrong. The second and the last are NaN where the
            prompt has no wrong answer.
        """
        log_prob = np.asarray(log_prob)
        right, wrong = self._sum(log_prob, wrong=False), self._sum(log_prob, wrong=True)
        misses = self._sum(~np.asarray(top, dtype=bool), wrong=False)
        with np.errstate(invalid="ignore"):  # -inf - -inf is NaN, and says so
            logit_diff = np.where(self.has_wrong, right - wrong, np.nan)
        return {
            "log_prob": right,
            "logit_diff": logit_diff,
            "correct": (misses == 0).astype(np.float64),
            "preferred": np.where(np.isnan(logit_diff), np.nan, right > wrong),
        }

    def _sum(self, values: np.ndarray, *, wrong: bool) -> np.ndarray:
        """[..., read] -> [..., prompt]: sums over the reads of one side; 0 where it has none."""
        reads = np.flatnonzero(self.read_wrong == wrong)
        prompts, starts = np.unique(self.read_prompt[reads], return_index=True)
        out = np.zeros((*values.shape[:-1], self.n_prompts))
        if len(reads):
            part = np.asarray(values[..., reads], dtype=np.float64)  # adds in double, counts bools
            out[..., prompts] = np.add.reduceat(part, starts, axis=-1)
        return out


def encode(task: Task, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """The task in the tokenizer's own ids: what it adds to a prompt (BOS) stays, nothing is added.

    If neither the prompt ends nor the answer starts with whitespace, one space is put before the
    answer. A missing wrong answer is the next row's (cyclic) different answer of equal token count;
    where none exists the prompt has none. Right and wrong answers that need the same input, or one
    that continues the other's, share a row.
    Raises: TaskError: a prompt or an answer without tokens, right and wrong answer of same tokens.
    """
    prompts = task.rows["prompt"].tolist()
    answers = task.rows["answer"].tolist()
    given = task.rows["wrong"].tolist() if "wrong" in task.rows else [None] * len(task)

    starts = _tokenized(tokenizer, prompts, add_special_tokens=True)
    # Any answer may be any prompt's wrong one, and its space depends on how that prompt ends.
    pairs = [(p, a) for p in {p[-1:].isspace(): p for p in prompts}.values() for a in answers]
    pairs += [(p, a) for p, a in zip(prompts, given, strict=True) if a is not None]
    ends = _tokenized(tokenizer, (gap(p, a) + a for p, a in pairs), add_special_tokens=False)
    wrong_of = _default_wrong(prompts, answers, ends)

    rows: list[tuple[int, int, Tokens]] = []  # prompt, its length, tokens
    reads: list[tuple[int, int, int, int, bool]] = []  # row, position, target, prompt, wrong
    for i, (prompt, answer, wrong) in enumerate(zip(prompts, answers, given, strict=True)):
        start, right = starts[prompt], ends[gap(prompt, answer) + answer]
        other = wrong_of(i) if wrong is None else ends[gap(prompt, wrong) + wrong]
        where = f"{task.source}: row {i + 1}"
        for name, made in (("prompt", start), ("answer", right), ("wrong answer", other)):
            if made is not None and not made:
                raise TaskError(f"{where}: the tokenizer makes no token of its {name}: change it")
        if right == other:
            raise TaskError(f"{where}: right and wrong answer are the same tokens: change one")
        sides = [(right, False)] if other is None else [(right, False), (other, True)]
        fed = [side[:-1] for side, _ in sides]  # nothing reads what follows the last token
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
        cluster=task.clusters,
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
    """A function: row -> tokens of the next row's (cyclic) different answer of equal count."""

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


def _members(owner: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the sorted `owner` equals each of `chosen`, one after the other, and which of them."""
    starts = np.searchsorted(owner, chosen)
    counts = np.searchsorted(owner, chosen, side="right") - starts
    new = np.repeat(np.arange(len(chosen)), counts)
    shift = starts - (np.cumsum(counts) - counts)
    return np.arange(len(new)) + shift[new], new
