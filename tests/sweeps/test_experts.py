"""Routing and experts of one layer, against plain sums over the tokens that chose an expert."""

import pytest
import torch

from mechforget.models.sites import Edit
from mechforget.sweeps.experts import Experts
from tests.sweeps.layers import LAYER, POSITIONS, ROWS, Values, drawn, layer, rows

D = 4


def part(gain):
    """An expert that multiplies by `gain` times its number, where it was chosen."""

    def expert_out(at, expert, x, routing):
        assert at == LAYER
        weight = torch.where(routing[..., 0] == expert, routing[..., 1], 0).sum(-1, keepdim=True)
        return gain * expert * x * weight

    return expert_out


def routing(seed, blocks=1):
    chosen = torch.randint(
        4, (blocks * ROWS, POSITIONS, 2), generator=torch.Generator().manual_seed(seed)
    )
    return torch.stack([chosen.float(), drawn(blocks * ROWS, POSITIONS, 2, seed=seed).exp()], -1)


@pytest.mark.parametrize("position", [None, 1])
def test_an_experts_part_is_exchanged_in_the_sum(position):
    """Catches the base's tokens or routing, another expert, a sum without the recipient's own part
    taken away, and a change at other positions."""
    value = drawn(ROWS, POSITIONS, D, seed=1)
    edits = layer(
        Values({("expert_out", 3): value}, expert_out=part(5)),
        Edit(LAYER, "W_expert", 2, position),
        Edit(LAYER, "expert_out", 3, position),
        expert_out=part(1),
    )
    found = Experts(edits).rewrites()
    assert list(found) == ["experts_in", "router", "experts"]
    x, t, given = (
        drawn(3 * ROWS, POSITIONS, D, seed=2),
        drawn(3 * ROWS, POSITIONS, D, seed=3),
        routing(4, blocks=3),
    )
    at = slice(None) if position is None else slice(position, position + 1)
    want = t.clone()
    own = [part(1)(LAYER, expert, x[rows(s)], given[rows(s)]) for s, expert in enumerate((2, 3))]
    want[rows(0), at] += (5 * own[0] - own[0])[:, at]
    want[rows(1), at] += (value - own[1])[:, at]
    found["experts_in"](x)
    assert torch.equal(found["router"](given.clone()), given)
    torch.testing.assert_close(found["experts"](t), want)
    assert (want != t[:1]).any()


def test_a_donors_routing_is_what_its_variants_experts_follow():
    """Catches a part of an expert that is computed with the routing that was replaced."""
    theirs = routing(7)
    edits = layer(
        Values({("router", None): theirs, ("expert_out", 3): drawn(ROWS, POSITIONS, D)}),
        Edit(LAYER, "router"),
        Edit(LAYER, "expert_out", 3),
        expert_out=part(1),
    )
    edits = type(edits)(
        LAYER,
        edits.model,
        edits.donor,
        edits.slots,
        {s: [(0, e)] for s, [(_, e)] in edits.by_site.items()},
    )
    found = Experts(edits).rewrites()
    x, given, t = drawn(2 * ROWS, POSITIONS, D, seed=2), routing(4, blocks=2), torch.zeros(4, 3, D)
    found["experts_in"](x)
    assert torch.equal(found["router"](given)[rows(0)], theirs)
    change = found["experts"](t)[rows(0)]
    want = drawn(ROWS, POSITIONS, D) - part(1)(LAYER, 3, x[rows(0)], theirs)
    torch.testing.assert_close(change, want)


def test_routing_alone_needs_no_expert_and_a_dense_layer_nothing():
    """Catches experts that are run, or asked for, where nobody changes what they add."""
    edits = layer(Values({("router", None): routing(1)}), Edit(LAYER, "router"))
    assert list(Experts(edits).rewrites()) == ["router"]
    assert not Experts(layer(Values({}), Edit(LAYER, "z", 0))).rewrites()
