"""Rows of the growing batch, against plain indexing."""

import pytest
import torch

from mechforget.models.sites import Edit
from mechforget.sweeps.slots import Slots
from tests.sweeps.layers import LAYER, POSITIONS, ROWS, Values, drawn, layer, rows


def test_appended_rows_are_the_base_rows_in_their_order():
    """Catches copies of the whole batch, or of each row in turn."""
    t = drawn(4 * ROWS, POSITIONS, 5)
    grown = Slots(ROWS).append(t, 3)
    assert torch.equal(grown[: 4 * ROWS], t)
    for copy in range(3):
        assert torch.equal(grown[rows(3 + copy)], t[:ROWS])


def test_reads_are_taken_from_the_base_and_then_from_each_slot():
    """Catches rows of the wrong slot, and rows and positions that are swapped."""
    t = drawn(3 * ROWS, POSITIONS, 5)
    row, position = [1, 0, 1], [0, 2, 1]
    found = Slots(ROWS).gather(t, torch.tensor(row), torch.tensor(position))
    assert found.shape == (3, 3, 5)
    for block in range(3):
        for read in range(3):
            assert torch.equal(found[block, read], t[block * ROWS + row[read], position[read]])


@pytest.mark.parametrize("position", [None, 1])
@pytest.mark.parametrize(
    ("site", "unit", "shape"),
    [
        ("mlp_out", None, (POSITIONS, 5)),
        ("z", 3, (POSITIONS, 4, 5)),
        ("pattern", 3, (4, POSITIONS, POSITIONS)),
        ("router", None, (POSITIONS, 4, 2)),
    ],
)
def test_a_value_is_written_to_its_slot_unit_and_position_alone(site, unit, shape, position):
    """Catches a value in another variant's rows, head or position, or in the base's."""
    one = (POSITIONS, POSITIONS) if site == "pattern" else shape if unit is None else (POSITIONS, 5)
    value = drawn(ROWS, *one, seed=1)
    edits = layer(
        Values({(site, unit): value, ("k", 0): value}),
        Edit(LAYER, "k", 0),
        Edit(LAYER, site, unit, position),
    )
    before = drawn(4 * ROWS, *shape)
    t = before.clone()
    assert edits.put(t, site) is t
    want = before.clone()
    for row in range(ROWS):
        for p in range(POSITIONS) if position is None else (position,):
            there = want[2 * ROWS + row]
            if site == "pattern":
                there[unit, p] = value[row, p]
            elif unit is None:
                there[p] = value[row, p]
            else:
                there[p, unit] = value[row, p]
    assert torch.equal(t, want)
