"""The table of oracles: it is made, every measure agrees, and one that doesn't is shown."""

from dataclasses import replace

import numpy as np
import pytest

from analyses import oracles as table


def test_every_measure_agrees_with_its_oracle(tmp_path, monkeypatch):
    """Catches a measure that drifted from its definition, and a table that wasn't made of it."""
    monkeypatch.setattr(table, "GRID", 30)  # quicker; the bounds are as wide
    monkeypatch.setattr(table, "PROBES", 48)
    out = tmp_path / "oracles.md"
    table.main(out=out)
    lines = out.read_text("utf-8").splitlines()
    start = lines.index("| " + " | ".join(table.HEADER) + " |")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start + 2 :]]
    assert [row[0] for row in rows] == [one.measure for one in table.ORACLES]
    for row, one in zip(rows, table.ORACLES, strict=True):
        said = dict(zip(table.HEADER, row, strict=True))
        assert said["agrees"] == "yes", row
        told = [said[name] for name in table.BACKENDS if said[name][:1].isdigit()]
        assert len(told) == max(1, len(one.backends)) and all(float(x) <= one.bound for x in told)
        assert len(said["oracle"]) > 20 and float(said["relative to"].split()[0]) > 0


def test_a_measure_that_is_wrong_is_shown():
    """Catches bounds that nothing can miss: a sign, a per cent, a head, NaN, another shape."""
    right = next(one for one in table.ORACLES if one.measure == "patching, head_out")
    inputs = table.opened("llama", "nnsight")
    ours, theirs = right.ours(inputs), right.theirs()
    assert table.difference(ours, theirs)[0] <= right.bound * abs(theirs).max()
    swapped = ours[:, :, [1, 0, 2, 3]]
    for wrong in (-ours, 1.01 * ours, ours[::-1], swapped, np.full(ours.shape, np.nan), ours[:1]):
        one = replace(right, ours=lambda _, w=wrong: w, theirs=lambda: theirs, backends=())
        assert table.line(one)[-1] == "**NO**"


def test_missing_values_must_be_missing_in_both():
    """Catches a NaN that counts as agreement."""
    a = np.array([1.0, np.nan, 2.0])
    assert table.difference(a, a) == (0.0, 2.0)
    off, _ = table.difference(a, np.array([1.0, 3.0, 2.0]))
    assert off == np.inf
    assert table.difference([1.0, 2.0], [1.0, 2.5]) == (0.5, pytest.approx(2.5))
