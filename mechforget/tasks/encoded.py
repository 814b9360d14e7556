"""A task as token ids: the rows to feed to a model, the log-probabilities to read, and the scores.

An input row is tok(prompt) + tok(answer) without its last token, as in teacher forcing. Rows are
padded on the right, where causal attention never attends to. All arrays are numpy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from mechforget.tasks.tree import Group, Tree, groups


@dataclass(frozen=True, eq=False)
class Encoded:
    """Input rows and the reads on them. All arrays are int64, except `read_wrong`.

    A read is the log-probability (nats) of token `target` given ids[row, : position + 1]. Rows and
    reads are in the order of their prompts, the right answer before the wrong one. What a model is
    fed are `fed` rows: these rows, or packed ones (`tasks.tree`).
    """

    ids: np.ndarray  # [row, position], right-padded
    length: np.ndarray  # [row], tokens without padding
    row_prompt: np.ndarray  # [row], number of its prompt
    prompt_length: np.ndarray  # [row], tokens of the prompt: its last position is this - 1
    read_row: np.ndarray  # [read]
    read_position: np.ndarray  # [read]
    read_target: np.ndarray  # [read]
    read_prompt: np.ndarray  # [read]
    read_wrong: np.ndarray  # [read], bool: it belongs to the wrong answer
    cluster: np.ndarray  # [prompt], the unit of resampling
    tree: Tree | None = None  # how rows are packed when a model is run; None: each by itself

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
    def fed(self) -> np.ndarray:
        """Token ids [fed row, node], padded on the right."""
        return self.ids if self.tree is None else self.tree.fill(self.ids)

    @property
    def parent(self) -> np.ndarray | None:
        """[fed row, node]: the node of the token before, see `Tree`; None: the one to the left."""
        return None if self.tree is None else self.tree.parent

    @property
    def fed_prompt(self) -> np.ndarray:
        """[fed row]: its prompt, where rows hold one prompt each."""
        if self.tree is None:
            return self.row_prompt
        found = np.full(len(self.tree.parent), -1)
        found[self.tree.row] = self.row_prompt
        assert (found[self.tree.row] == self.row_prompt).all(), "prompts share rows"
        return found

    def at(self, row: Any, position: Any) -> tuple[np.ndarray, np.ndarray]:
        """(fed row, node) of the tokens at these positions of these rows."""
        if self.tree is None:
            return row, position
        return self.tree.row[row], self.tree.node[row, position]

    @property
    def read_at(self) -> tuple[np.ndarray, np.ndarray]:
        """(fed row, node) of each read."""
        return self.at(self.read_row, self.read_position)

    @property
    def n_read(self) -> int:
        """The number of tokens whose logits are read."""
        where = np.stack([self.read_row, self.read_position])
        return np.unique(where, axis=1).shape[1]

    def by_row(self, value: Any, rows: np.ndarray | None = None) -> Any:
        """An activation [fed row, node, ...] as [row, position, ...], of all rows or of some. What
        it holds beyond a row's end is another token's."""
        rows = np.arange(self.n_rows) if rows is None else rows
        if self.tree is None:
            return value[rows]
        return value[self.tree.row[rows][:, None], self.tree.node[rows]]

    def pattern_by_row(self, value: Any, rows: np.ndarray | None = None) -> Any:
        """A pattern [fed row, head, query, key] as [row, head, query, key]."""
        rows = np.arange(self.n_rows) if rows is None else rows
        if self.tree is None:
            return value[rows]
        head, node = np.arange(value.shape[1])[:, None, None], self.tree.node[rows]
        place = self.tree.row[rows][:, None, None, None]
        return value[place, head, node[:, None, :, None], node[:, None, None, :]]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on these prompts for the report."""
        lack = self.n_prompts - int(self.has_wrong.sum())
        if not lack:
            return ()
        return (
            f"{lack} of {self.n_prompts} prompts have no wrong answer (no other answer has as many "
            f"tokens): they count for log_prob and correct only",
        )

    def subset(self, prompts: np.ndarray) -> Encoded:
        """Some of the prompts, by number (in that order) or by a bool per prompt. Rows and reads
        are renumbered, and padding is trimmed to the longest row. Clusters keep their numbers.
        Nothing is packed."""
        chosen = np.arange(self.n_prompts)[prompts]
        rows, row_prompt = _members(self.row_prompt, chosen)
        reads, read_prompt = _members(self.read_prompt, chosen)
        # A prompt's rows are contiguous in both, so a read's offset from the first stays the same.
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
        """The prompts of both tasks, the other's after these; their clusters stay separate.
        Nothing is packed."""
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

    def by_prompt(self, nodes: int) -> Encoded:
        """The same prompts in the same order; each prompt's rows are packed into one, if it has at
        most `nodes`."""
        groups = grouped(self, nodes=nodes, across=False)
        (found,), _ = packed(self, groups=sorted(groups, key=lambda group: group.prompts[0]))
        return found

    def score(self, log_prob: np.ndarray, top: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics of each prompt, from what was read.

        Args: log_prob: [..., read], nats. top: bool [..., read]: the target is the argmax.
        Returns: float64 [..., prompt]: `log_prob` = sum log p(right), nats; `logit_diff` = that
            - sum log p(wrong), nats; `correct`: 1 where every token of the right answer is the
            argmax; `preferred`: 1 where right > wrong. `logit_diff` and `preferred` are NaN where
            the prompt has no wrong answer.
        """
        log_prob = np.asarray(log_prob)
        right, wrong = self._sum(log_prob, wrong=False), self._sum(log_prob, wrong=True)
        misses = self._sum(~np.asarray(top, dtype=bool), wrong=False)
        with np.errstate(invalid="ignore"):  # -inf - -inf is NaN, as it should be
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
            part = np.asarray(
                values[..., reads], dtype=np.float64
            )  # float64 sums; of bools the count
            out[..., prompts] = np.add.reduceat(part, starts, axis=-1)
        return out


@lru_cache(maxsize=32)  # each measure of a study asks for the same
def grouped(
    encoded: Encoded, *others: Encoded, nodes: int, quadratic: float = np.inf, across: bool = True
) -> tuple[Group, ...]:
    """How the prompts are best packed, see `tree.groups`; others: the same rows with other tokens,
    which are to be packed alike."""
    ids = [e.ids for e in (encoded, *others)]
    found = groups(
        ids, encoded.length, encoded.row_prompt, nodes=nodes, quadratic=quadratic, across=across
    )
    return tuple(found)


def fed_tokens(encoded: Encoded, *, nodes: int, quadratic: float, across: bool = True) -> int:
    """How many tokens models are fed in one pass over all prompts."""
    found = grouped(encoded, nodes=nodes, quadratic=quadratic, across=across)
    return sum(group.rows * group.width for group in found)


def packed(
    encoded: Encoded, *others: Encoded, groups: Sequence[Group]
) -> tuple[tuple[Encoded, ...], np.ndarray]:
    """The prompts of these groups, packed as they say, and their numbers. others: as in `grouped`.
    Where no row would hold more than one, nothing is packed."""
    prompts = np.concatenate([group.prompts for group in groups])
    parts = tuple(e.subset(prompts) for e in (encoded, *others))
    first = parts[0]
    rows = np.bincount(first.row_prompt)
    of_row, fed, prompt = np.empty(first.n_rows, np.int64), 0, 0
    for group in groups:
        n = len(group.prompts)
        mine = np.flatnonzero((first.row_prompt >= prompt) & (first.row_prompt < prompt + n))
        of_row[mine] = fed + (np.arange(len(mine)) if group.rows > 1 else 0)
        fed, prompt = fed + group.rows, prompt + n
    if fed == int(rows.sum()):
        return parts, prompts
    tree = Tree.of([e.ids for e in parts], first.length, of_row)
    return tuple(replace(e, tree=tree) for e in parts), prompts


def _members(owner: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `chosen` in turn the indices at which the sorted `owner` equals it, concatenated;
    and for each index the position in `chosen`."""
    starts = np.searchsorted(owner, chosen)
    counts = np.searchsorted(owner, chosen, side="right") - starts
    new = np.repeat(np.arange(len(chosen)), counts)
    shift = starts - (np.cumsum(counts) - counts)
    return np.arange(len(new)) + shift[new], new
