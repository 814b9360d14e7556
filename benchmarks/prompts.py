"""The prompts of a row: a task for mechforget, and the same prompts as plain sequences of tokens.

The sequences are made here and not by `Task.encode`, so that the other side shares no code with
the package, and the tokens are counted independently of how the package lays prompts out.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mechforget import tasks
from mechforget.tasks import Task

TASK = "builtin:language"
WORDS = (  # for prompts that share no first word
    "river stone market window garden paper silver winter summer bridge mountain letter music "
    "harbour engine forest island copper candle mirror castle valley meadow thunder shadow ladder "
    "basket ribbon orchard lantern compass anchor velvet marble cotton pepper saddle hammer"
).split()


@dataclass(frozen=True)
class Sequences:
    """Input rows, padded on the right, and where tokens of answers are read.

    Two answers of a prompt that need the same input (answers of one token) share a row.
    """

    ids: np.ndarray  # [row, position]
    length: np.ndarray  # [row]
    row: np.ndarray  # [read]
    position: np.ndarray  # [read]
    target: np.ndarray  # [read]
    prompt: np.ndarray  # [read]
    wrong: np.ndarray  # [read], bool
    prompts: int

    @classmethod
    def of(cls, task: Task, tokenizer: Any) -> "Sequences":
        rows: dict[tuple[int, tuple[int, ...]], int] = {}
        reads: list[tuple[int, int, int, int, bool]] = []
        for prompt, record in enumerate(task.rows.to_dict("records")):
            start = tuple(tokenizer(record["prompt"])["input_ids"])
            for wrong, text in enumerate((record["answer"], record["wrong"])):
                if text is None:
                    continue
                answer = answer_tokens(text, tokenizer)
                row = rows.setdefault((prompt, start + answer[:-1]), len(rows))
                for i, token in enumerate(answer):
                    reads.append((row, len(start) - 1 + i, token, prompt, bool(wrong)))
        inputs = [tokens for _, tokens in rows]
        length = np.array([len(tokens) for tokens in inputs])
        ids = np.zeros((len(inputs), length.max()), np.int64)
        for line, tokens in zip(ids, inputs, strict=True):
            line[: len(tokens)] = tokens
        row, position, target, prompt, wrong = map(np.array, zip(*reads, strict=True))
        return cls(ids, length, row, position, target, prompt, wrong, len(task))

    def metrics(self, log_prob: np.ndarray) -> np.ndarray:
        """[metric, ..., prompt], log_prob and logit_diff, from the reads' log p [..., read]."""
        member = self.prompt[:, None] == np.arange(self.prompts)
        right = log_prob @ (member & ~self.wrong[:, None])
        wrong = log_prob @ (member & self.wrong[:, None])
        has = (member & self.wrong[:, None]).any(0)
        return np.stack([right, np.where(has, right - wrong, np.nan)])

    def tree(self) -> "Tree":
        """The distinct beginnings of the rows: what has to be computed once."""
        rows = [tuple(ids[:n]) for ids, n in zip(self.ids.tolist(), self.length, strict=True)]
        nodes = {row[:end] for row in rows for end in range(1, len(row) + 1)}
        read = {rows[row][: at + 1] for row, at in zip(self.row, self.position, strict=True)}
        depths = [np.array(sorted(len(node) - 1 for node in some)) for some in (nodes, read)]
        return Tree(*depths)

    def by_prompt(self) -> list["Sequences"]:
        """Each prompt by itself."""
        return [self._only(prompt) for prompt in range(self.prompts)]

    def _only(self, prompt: int) -> "Sequences":
        mine = self.prompt == prompt
        rows, row = np.unique(self.row[mine], return_inverse=True)
        length = self.length[rows]
        return Sequences(
            ids=self.ids[rows, : length.max()],
            length=length,
            row=row,
            position=self.position[mine],
            target=self.target[mine],
            prompt=np.zeros(len(row), int),
            wrong=self.wrong[mine],
            prompts=1,
        )


@dataclass(frozen=True)
class Tree:
    """Distinct tokens: beginnings that several rows share count once."""

    depth: np.ndarray  # [node] number of tokens before it
    read: np.ndarray  # [read node] the same of those that are unembedded


def task(prompts: int, shots: int, tokenizer: Any, seed: int = 0) -> Task:
    """So many prompts of `TASK`, drawn as a study draws them, each with a wrong answer."""
    whole = tasks.load(TASK, few_shot=shots, seed=seed)
    drawn = np.random.default_rng(seed).permutation(len(whole))[:prompts]
    return _with_wrong(whole.select(np.sort(drawn), f"{prompts} drawn"), tokenizer)


def unshared(prompts: int, words: int, tokenizer: Any, seed: int = 0) -> Task:
    """Prompts of random words, each with a first word of its own: they share nothing."""
    draw = np.random.default_rng(seed)
    first = draw.permutation(WORDS)[:prompts]
    lines = [" ".join([one, *draw.choice(WORDS, words - 1)]) for one in first]
    answers = draw.permutation(WORDS)[:prompts]
    rows = pd.DataFrame({"prompt": lines, "answer": answers}, dtype=object)
    return _with_wrong(Task("words", rows, "random words"), tokenizer)


def answer_tokens(text: str, tokenizer: Any) -> tuple[int, ...]:
    return tuple(tokenizer(" " + text, add_special_tokens=False)["input_ids"])


def _with_wrong(task: Task, tokenizer: Any) -> Task:
    """A wrong answer for each prompt: the next other answer with as many tokens, if any."""
    answers = task.rows["answer"].tolist()
    made = [answer_tokens(text, tokenizer) for text in answers]
    wrong = []
    for i, mine in enumerate(made):
        order = [*range(i + 1, len(made)), *range(i)]
        fit = [j for j in order if len(made[j]) == len(mine) and made[j] != mine]
        wrong.append(answers[fit[0]] if fit else None)
    return replace(task, rows=task.rows.assign(wrong=wrong))
