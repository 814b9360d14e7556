"""`mechforget diff`, as a person types it."""

import csv
import json

from tests.runs import mechforget
from tests.tiny import save_tiny


def test_diff(tmp_path):
    """Catches a table that hides what moved, an export that isn't the measure, and a wrong input
    that ends in a traceback."""
    a, b = save_tiny(tmp_path / "a"), save_tiny(tmp_path / "b", seed=1)
    said = mechforget("diff", a, b, "--rows", 3)
    assert said.code == 0 and said.err == ""
    assert "the 3 that moved the most" in said.out and "W_Q head" in said.out
    assert said.out.splitlines()[-1].startswith("all weights: ‖ΔW‖ / ‖W‖ = 1.17")
    rows = list(csv.DictReader(mechforget("diff", a, b, "--format", "csv").out.splitlines()))
    assert {r["kind"] for r in rows} == {"tensor", "head", "group", "total"}
    assert len([r for r in rows if r["kind"] == "head"]) == 3 * 2 * 4
    said = mechforget("diff", a, a, "--format", "json")
    assert "same files" in said.err and all(r["norm"] == 0 for r in json.loads(said.out))
    file = tmp_path / "t.parquet"
    assert mechforget("diff", a, b, "--format", "parquet", "--out", file).code == 0
    assert file.stat().st_size > 0
    for words, wants in (
        ((a, tmp_path / "c"), "no such file or folder"),
        ((a, save_tiny(tmp_path / "d", "phi3")), "architecture llama / phi3"),
        ((a, b, "--format", "parquet"), "parquet is binary: give --out FILE"),
        ((a, b, "--out", file), "give --format csv too"),
    ):
        said = mechforget("diff", *words)
        assert said.code == 2 and wants in said.err and len(said.err.splitlines()) == 1
