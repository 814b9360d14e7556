"""Rows as trees: every row is found again on its path, and nothing that is shared is there twice."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mechforget.tasks.encoded import Encoded, grouped, packed
from mechforget.tasks.tree import Tree, depth, groups

# Three letters, so that rows often begin alike, are equal, or one begins another.
ROW = st.lists(st.integers(1, 3), min_size=1, max_size=6)
PROMPTS = st.lists(st.lists(ROW, min_size=1, max_size=2), min_size=1, max_size=8)


def padded(rows):
    ids = np.zeros((len(rows), max(map(len, rows))), int)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return ids, np.array([len(row) for row in rows])


def path(parent, node):
    """The nodes from a root to this one."""
    found = []
    while node >= 0:
        found.append(int(node))
        node = parent[node]
    return found[::-1]


def prefixes(rows):
    return {tuple(row[: i + 1]) for row in rows for i in range(len(row))}


@given(st.lists(ROW, min_size=1, max_size=8), st.data())
def test_each_row_is_a_path_and_each_beginning_one_node(rows, data):
    """Catches a token that is lost, on another row's path, or computed twice; a child before its
    parent; padding that has one."""
    ids, length = padded(rows)
    row = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows))))
    row = np.unique(row, return_inverse=True)[1]  # no packed row is empty
    tree = Tree.of([ids], length, row)
    fed = tree.fill(ids)
    for r, tokens in enumerate(rows):
        last = tree.node[r, len(tokens) - 1]
        nodes = path(tree.parent[row[r]], last)
        assert nodes == tree.node[r, : len(tokens)].tolist() == sorted(nodes)
        assert fed[row[r], nodes].tolist() == tokens
        assert depth(tree.parent)[row[r], nodes].tolist() == list(range(len(tokens)))
        assert (tree.node[r, len(tokens) :] == -1).all()
    for p in range(len(tree.parent)):
        n = len(prefixes([t for t, at in zip(rows, row, strict=True) if at == p]))
        assert (tree.parent[p, n:] == -1).all() and (fed[p, n:] == 0).all()
        assert tree.node[row == p].max() == n - 1


def encoded(prompts):
    rows = [row for prompt in prompts for row in prompt]
    ids, length = padded(rows)
    prompt = np.repeat(np.arange(len(prompts)), [len(p) for p in prompts])
    first = np.r_[True, prompt[1:] != prompt[:-1]]
    return Encoded(
        ids=ids,
        length=length,
        row_prompt=prompt,
        prompt_length=np.ones(len(rows), int),
        read_row=np.arange(len(rows)),
        read_position=length - 1,
        read_target=np.arange(len(rows)),
        read_prompt=prompt,
        read_wrong=~first,
        cluster=np.arange(len(prompts)),
    )


@settings(deadline=None)
@given(PROMPTS, st.integers(0, 12), st.sampled_from([3.0, 50.0, np.inf]), st.booleans())
def test_prompts_are_packed_once_and_found_again(prompts, nodes, quadratic, across):
    """Catches a prompt that is lost, doubled, split over two rows or given another's tokens; a row
    that is too large; reads of another prompt; prompts that share where they mustn't."""
    batch = encoded(prompts)
    chosen = grouped(batch, nodes=nodes, quadratic=quadratic, across=across)
    assert [g.width for g in chosen] == sorted(g.width for g in chosen)
    assert sorted(np.concatenate([g.prompts for g in chosen])) == list(range(len(prompts)))
    (found,), order = packed(batch, groups=chosen)
    assert len(found.fed) == sum(g.rows for g in chosen)
    assert found.fed.shape[1] == max(g.width for g in chosen)
    assert across or (np.bincount(found.fed_prompt) >= 1).all()
    for row, prompt in enumerate(found.row_prompt):
        tokens = found.ids[row, : found.length[row]]
        assert tokens.tolist() in prompts[order[prompt]]
        at, node = found.at(row, np.arange(found.length[row]))
        assert (found.fed[at, node] == tokens).all()
        assert (found.by_row(found.fed)[row, : len(tokens)] == tokens).all()
        pair = found.fed[:, None, :, None] * 100 + found.fed[:, None, None, :]
        square = found.pattern_by_row(pair)[row, 0, : len(tokens), : len(tokens)]
        assert (square == tokens[:, None] * 100 + tokens).all()
    assert (found.fed[found.read_at] == found.ids[found.read_row, found.read_position]).all()
    for group in chosen:
        mine = [row for p in group.prompts for row in prompts[p]]
        if group.rows == 1:
            assert group.width == len(prefixes(mine)) and (nodes or len(mine) == 1)
            assert group.width <= nodes or len(mine) == 1
        else:
            assert len(group.prompts) == 1 and len(prefixes(mine)) > nodes
            assert group.width == max(map(len, mine))


def test_packing_costs_no_more_and_stops_where_attention_would():
    """Catches packing of what shares nothing, which only makes attention dearer; rows that grow
    without an end; and that pairs whose corrupted prompts differ share tokens."""
    apart = encoded([[[i, i, i, i]] for i in range(1, 20)])
    assert [len(g.prompts) for g in grouped(apart, nodes=99, quadratic=50.0)] == [1] * 19
    alike = [[[9] * 40 + [i // 9, i % 9]] for i in range(81)]

    def cost(widths):
        return sum(n * (1 + n / 20) for n in widths)

    def in_blocks(k):  # k prompts a row, in order
        blocks = [[p[0] for p in alike[i : i + k]] for i in range(0, 81, k)]
        return cost(len(prefixes(rows)) for rows in blocks)

    widths = [g.width for g in grouped(encoded(alike), nodes=999, quadratic=20.0)]
    assert 1 < len(widths) < 9
    assert cost(widths) <= 1.1 * min(map(in_blocks, range(1, 82)))
    one, other = encoded([[[1, 2, 3]], [[1, 2, 4]]]), encoded([[[5, 2, 3]], [[6, 2, 4]]])
    assert [g.width for g in grouped(one, nodes=9)] == [4]
    assert {g.width for g in grouped(one, other, nodes=9)} == {3}  # they differ from the first on
    same = [replaced for replaced in (one, encoded([[[5, 2, 3]], [[5, 2, 4]]]))]
    assert [g.width for g in grouped(*same, nodes=9)] == [4]


def test_thousands_of_prompts_are_grouped():
    """Catches a grouping that takes the square of the number of prompts, or a limit on recursion."""
    rng = np.random.default_rng(0)
    shots = rng.integers(1, 50, 200)
    ids = np.concatenate([np.tile(shots, (2000, 1)), rng.integers(1, 50, (2000, 5))], 1)
    found = groups([ids], np.full(2000, 205), np.arange(2000), nodes=5000, quadratic=900)
    assert sum(len(g.prompts) for g in found) == 2000
    assert sum(g.width for g in found) < 0.15 * ids.size
