"""Projections, patterns and heads' outputs of one layer, against plain indexing."""

import pytest
import torch

from mechforget.models.sites import Edit
from mechforget.sweeps.attention import Heads, Projection
from tests.sweeps.layers import LAYER, POSITIONS, ROWS, Values, drawn, layer, rows

D, HEADS, WIDTH = 6, 4, 5
WEIGHT = {head: drawn(WIDTH, D, seed=10 + head) for head in range(HEADS)}
BIAS = {head: drawn(WIDTH, seed=20 + head) for head in range(HEADS)}
W_O = {head: drawn(D, WIDTH, seed=30 + head) for head in range(HEADS)}


def weight(layer_, matrix, head):
    assert layer_ == LAYER
    return (W_O[head], None) if matrix == "W_O" else (WEIGHT[head], BIAS[head])


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_graft_projects_what_its_own_rows_feed(name):
    """Catches the base's input, another head's weights, a lost bias, and a value that a graft in
    another slot overwrites."""
    value = drawn(ROWS, POSITIONS, WIDTH, seed=1)
    graft, put = Edit(LAYER, f"W_{name.upper()}", 2), Edit(LAYER, name, 1)
    edits = layer(Values({(name, 1): value}, weight=weight), graft, put, has=lambda *_: False)
    found = Projection(edits, name).rewrites()
    assert list(found) == [f"{name}_in", name]
    x, t = drawn(3 * ROWS, POSITIONS, D, seed=2), drawn(3 * ROWS, POSITIONS, HEADS, WIDTH, seed=3)
    want = t.clone()
    want[rows(0), :, 2] = x[rows(0)] @ WEIGHT[2].T + BIAS[2]
    want[rows(1), :, 1] = value
    assert found[f"{name}_in"](x) is None
    torch.testing.assert_close(found[name](t), want)


def test_a_donors_norm_sees_the_whole_grafted_projection_and_gives_the_units_part():
    """Catches the recipient's norm, the normed value of another head, and rows of another slot."""
    edits = layer(
        Values({}, weight=weight, norm=lambda at, name, x: 3 * x + (at, name) @ _Count()),
        Edit(LAYER, "W_K", 0),
        Edit(LAYER, "W_Q", 2),
        has=lambda at, name: (at, name) == (LAYER, "q_norm"),
        per_head=lambda name, x: x.unflatten(-1, (HEADS, -1)),
    )
    found = Projection(edits, "q").rewrites()
    assert list(found) == ["q_in", "q", "q_norm_in", "q_norm"]
    whole, normed = (
        drawn(3 * ROWS, POSITIONS, HEADS * WIDTH),
        drawn(3 * ROWS, POSITIONS, 20, seed=1),
    )
    want = normed.clone()
    want[rows(1), :, 2 * WIDTH : 3 * WIDTH] = 3 * whole[rows(1), :, 2 * WIDTH : 3 * WIDTH] + 1
    found["q_norm_in"](whole)
    torch.testing.assert_close(found["q_norm"](normed), want)


class _Count:
    def __rmatmul__(self, asked):
        assert asked == (LAYER, "q_norm")
        return 1


def test_values_have_no_norm_and_nothing_is_rewritten_without_edits():
    """Catches a donor's q that is normed by the donor, and points that cost time for nothing."""
    edits = layer(Values({}), Edit(LAYER, "q", 0), has=lambda *_: True)
    assert list(Projection(edits, "q").rewrites()) == ["q"]
    assert not Projection(edits, "k").rewrites() and not Heads(edits).rewrites()


@pytest.mark.parametrize("position", [None, 1])
def test_a_head_is_silenced_and_the_donors_part_is_added(position):
    """Catches a part that is added at other positions, a z that is silenced before W_O has seen
    it, and one head's part in another variant's rows."""
    value, z_value = drawn(ROWS, POSITIONS, D, seed=1), drawn(ROWS, POSITIONS, WIDTH, seed=2)
    edits = layer(
        Values({("head_out", 1): value, ("z", 3): z_value}, weight=weight),
        Edit(LAYER, "W_O", 2, position),
        Edit(LAYER, "head_out", 1, position),
        Edit(LAYER, "z", 3),
    )
    found = Heads(edits).rewrites()
    assert list(found) == ["z", "attn_raw"]
    z, out = drawn(4 * ROWS, POSITIONS, HEADS, WIDTH, seed=3), drawn(4 * ROWS, POSITIONS, D, seed=4)
    at = slice(None) if position is None else slice(position, position + 1)
    want_z, want = z.clone(), out.clone()
    want[rows(0), at] += (z[rows(0), :, 2] @ W_O[2].T)[:, at]
    want[rows(1), at] += value[:, at]
    want_z[rows(0), at, 2] = 0
    want_z[rows(1), at, 1] = 0
    want_z[rows(2), :, 3] = z_value
    assert torch.equal(found["z"](z), want_z)
    torch.testing.assert_close(found["attn_raw"](out), want)


def test_a_pattern_is_written_by_head():
    """Catches a pattern that takes the place of another head's."""
    value = drawn(ROWS, POSITIONS, POSITIONS, seed=1)
    found = Heads(layer(Values({("pattern", 2): value}), Edit(LAYER, "pattern", 2))).rewrites()
    t = drawn(2 * ROWS, HEADS, POSITIONS, POSITIONS)
    want = t.clone()
    want[rows(0), 2] = value
    assert list(found) == ["pattern"] and torch.equal(found["pattern"](t), want)
