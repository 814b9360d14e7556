"""Rows packed as trees: tokens with which several rows begin are computed once.

A packed row holds several rows as a forest. A node is a token, and its parent is the token before
it; rows that begin alike share the nodes of what they share. A model that gives each node its depth
as position, and lets it attend to its ancestors alone, computes what it would in a row of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

REACH = 4096  # the most prompts in a packed row
Rows = Sequence[np.ndarray]  # the same rows in several versions: [row, position] token ids each


@dataclass(frozen=True, eq=False)
class Tree:
    """Where each token of some rows lies among packed rows. All arrays are int64."""

    parent: np.ndarray  # [packed row, node]; -1: it begins a row, or is padding. Parents come first
    row: np.ndarray  # [row]: the packed row that holds it
    node: np.ndarray  # [row, position]: its token's node there; -1 beyond its end

    @classmethod
    def of(cls, ids: Rows, length: np.ndarray, packed: np.ndarray) -> "Tree":
        """The tree of rows of this `length` [row], where `packed` [row] says which packed row holds
        each. Rows share a token only where all versions agree on all tokens up to it."""
        tokens = _joint(ids)
        tries = [_Trie() for _ in range(int(packed.max(initial=-1)) + 1)]
        node = np.full(tokens.shape, -1)
        for r, (trie, n) in enumerate(zip(packed.tolist(), length.tolist(), strict=True)):
            node[r, :n] = tries[trie].add(tokens[r, :n].tolist())
        parent = np.full((len(tries), max(len(trie.parent) for trie in tries)), -1)
        for line, trie in zip(parent, tries, strict=True):
            line[: len(trie.parent)] = trie.parent
        return cls(parent, packed, node)

    @property
    def linked(self) -> np.ndarray | None:
        """`parent`; None where each row has a packed row of its own, which needs no mask."""
        return self.parent if len(self.parent) < len(self.row) else None

    def fill(self, ids: np.ndarray) -> np.ndarray:
        """Token ids [packed row, node] of ids [row, position]; padding is 0."""
        row, position = np.nonzero(self.node >= 0)
        filled = np.zeros(self.parent.shape, ids.dtype)
        filled[self.row[row], self.node[row, position]] = ids[row, position]
        return filled


class _Trie:
    """One packed row while it is made."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.child: dict[tuple[int, int], int] = {}

    def add(self, tokens: Sequence[int]) -> list[int]:
        """The nodes of these tokens; those that it lacks are added."""
        at, found = -1, list[int]()
        for token in tokens:
            below = self.child.setdefault((at, token), len(self.parent))
            if below == len(self.parent):
                self.parent.append(at)
            at = below
            found.append(at)
        return found


def depth(parent: np.ndarray) -> np.ndarray:
    """How many ancestors each node has, of parents [packed row, node]."""
    found, at = np.zeros(parent.shape, np.int64), parent
    while (more := at >= 0).any():
        found += more
        at = np.where(more, np.take_along_axis(parent, np.maximum(at, 0), 1), -1)
    return found


@dataclass(frozen=True)
class Group:
    """Prompts that share a packed row; or one prompt, each of whose rows is run as it is."""

    prompts: np.ndarray
    rows: int  # that the model is fed
    width: int  # the longest of them


def groups(
    ids: Rows,
    length: np.ndarray,
    prompt: np.ndarray,
    *,
    nodes: int,
    quadratic: float = np.inf,
    across: bool = True,
) -> list[Group]:
    """The prompts, each once, packed such that all rows together cost least: n nodes cost
    n · (1 + n / quadratic), because attention grows with the square.

    A packed row holds prompts that are neighbours in the order of their tokens. Groups are in the
    order of their width.
    Args: length, prompt: of each row; a prompt's rows are neighbours. nodes: the largest packed
        row; 0: nothing is packed. across: whether several prompts may share a row.
    """
    ends = np.searchsorted(prompt, np.arange(int(prompt.max(initial=-1)) + 2))
    spans = [slice(a, b) for a, b in pairwise(ends)]
    tokens = _joint(ids)
    lines = [tokens[r, :n].tolist() for r, n in enumerate(length.tolist())]
    order = sorted(range(len(spans)), key=lambda p: lines[spans[p].start])
    own = np.array([_size(lines[spans[p]]) for p in order])
    after = [_size(lines[spans[p]] + lines[spans[q]]) for p, q in pairwise(order)]
    new = np.r_[own[:1], after - own[:-1]] if across else own
    found = list[Group]()
    for start, end in _segments(own, new, nodes if across else 0, quadratic):
        mine = np.array(sorted(order[start:end]))
        rows = [line for p in mine for line in lines[spans[p]]]
        if (width := _size(rows)) <= nodes:
            found.append(Group(mine, 1, width))
        else:
            found.append(Group(mine, len(rows), max(map(len, rows))))
    return sorted(found, key=lambda group: group.width)


def _segments(
    own: np.ndarray, new: np.ndarray, nodes: int, quadratic: float
) -> list[tuple[int, int]]:
    """Where prompts in order are cut into rows, by dynamic programming.

    own [prompt]: nodes of a row that begins with it. new [prompt]: nodes that it adds to a row that
    holds the prompt before it.
    """
    total = np.cumsum(new)
    best, begin = np.zeros(len(own) + 1), np.zeros(len(own) + 1, int)
    for end in range(1, len(own) + 1):
        first = max(0, end - REACH)
        width = own[first:end] + total[end - 1] - total[first:end]
        cost = best[first:end] + width * (1 + width / quadratic)
        cost[:-1][width[:-1] > nodes] = np.inf
        at = len(cost) - 1 - int(np.argmin(cost[::-1]))  # of equal ones the shortest row
        best[end], begin[end] = cost[at], first + at
    cuts = [len(own)]
    while cuts[-1]:
        cuts.append(int(begin[cuts[-1]]))
    return list(pairwise(cuts[::-1]))


def _size(lines: Sequence[Sequence[int]]) -> int:
    """The number of nodes of a packed row that holds these rows."""
    trie = _Trie()
    for line in lines:
        trie.add(line)
    return len(trie.parent)


def lone(ids: np.ndarray, length: np.ndarray, groups: Sequence[Group]) -> tuple[np.ndarray, Tree]:
    """The rows of these groups and their tree, of prompts that have one row each."""
    rows = np.concatenate([group.prompts for group in groups])
    packed = np.repeat(np.arange(len(groups)), [len(group.prompts) for group in groups])
    return rows, Tree.of([ids[rows]], length[rows], packed)


def _joint(ids: Rows) -> np.ndarray:
    """One number for each token, such that equal numbers are equal tokens in every version."""
    if len(ids) == 1:
        return ids[0]
    _, numbers = np.unique(np.stack([x.ravel() for x in ids]), axis=1, return_inverse=True)
    return numbers.reshape(ids[0].shape)
