"""The table of planted damage: its rank statistic, its units, and that a measure which is wrong is
shown as one."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy.stats import mannwhitneyu

from analyses import planted as table
from tests.measures import toy


def test_auroc_is_scipys():
    """Catches ranks of the wrong side, and ties that count."""
    rng = np.random.default_rng(0)
    for n in (1, 3, 7):
        score, mask = rng.integers(0, 6, 20).astype(float), np.arange(20) < n
        want = mannwhitneyu(score[mask], score[~mask]).statistic / (n * (20 - n))
        assert table.auroc(score, mask) == pytest.approx(want)
    assert table.auroc(np.zeros(4), np.array([True, False, False, False])) == 0.5


def test_units_are_the_truths():
    """Catches a head taken for another's, a layer without its gate, heads taken for experts."""
    truth = {"heads": [[1, 0]], "experts": [[2, 1]], "mlps": [0], "gates": [2]}
    score = xr.DataArray(np.zeros((3, 2)), dims=("layer", "head"))
    score = score.assign_coords(layer=range(3), head=range(2))
    assert np.argwhere(table.units(truth, score)).tolist() == [[1, 0]]
    experts = score.rename(head="expert")
    assert np.argwhere(table.units(truth, experts)).tolist() == [[2, 1]]
    assert table.units(truth, score.isel(head=0, drop=True)).tolist() == [True, False, True]


def test_every_claim_is_about_a_damage_that_is_planted():
    """Catches a misspelt damage, which would be no claim at all, and one that says both."""
    names = [m.name for m in table.MEASURES]
    assert len(set(names)) == len(names)
    for measure in table.MEASURES:
        told = [*measure.sees, *measure.blind, *measure.may]
        assert measure.sees and set(told) <= set(table.DAMAGES)
        assert len(set(told)) == len(told)


def test_what_is_found_and_what_fails(monkeypatch, tmp_path):
    """One seed, two damages; a measure that is right, and some that claim what isn't so. Catches
    failures that aren't shown, and clean pairs with findings that are called nothing."""
    named = {m.name: m for m in table.MEASURES}
    right, by_weights = named["patching head_out"], named["weights of heads"]
    last, kept = "v in the last layer", "v and o compensated"

    def random(inputs):
        shape = inputs.post.spec.layers, inputs.post.spec.heads
        noise = np.random.default_rng(0).normal(size=shape)
        noise[-1] = 0  # the heads that are damaged are its last
        return xr.DataArray(
            noise,
            dims=("layer", "head"),
            coords={"layer": range(shape[0]), "head": range(shape[1])},
        )

    measures = [
        replace(right, sees={last}, blind={kept}, may=set()),
        replace(right, name="deaf", sees={kept}, blind={last}, may=set(), floor=1e-9),
        replace(right, name="modest", sees=set(), blind=set(), may={kept}),
        replace(by_weights, sees={last, kept}, blind=set()),
        table.Measure("random", random, {last}, set(), signed=False),
    ]
    monkeypatch.setattr(table, "MEASURES", measures)
    monkeypatch.setattr(table, "DAMAGES", {d: table.DAMAGES[d] for d in (last, kept)})
    monkeypatch.setattr(table, "FAMILIES", {"llama": table.FAMILIES["llama"]})
    monkeypatch.setattr(table, "learned", lambda *_: (toy.memorised(), toy.encoded()))
    found = table.tables(*table.run(1))
    did = {tuple(line[:2]): line[-1] for line in found["Planted damage"][1:]}
    assert did["patching head_out", last].startswith("found")
    assert did["patching head_out", kept] == "nothing"
    assert did["deaf", kept] == did["deaf", last] == did["random", last] == "FAILED"
    assert did["modest", kept] == "not found"
    assert did["weights of heads", last] == did["weights of heads", kept] == "found"
    clean = {tuple(line[:2]): line[-1] for line in found["Clean pairs"][1:]}
    assert clean["patching head_out", "saved again"] == "nothing"
    assert clean["random", "saved again"] == "FAILED"
    lost = {line[0]: line[1:] for line in found["What was forgotten"][1:]}
    assert lost["saved again"] == ["0.000 (0.000 to 0.000)", "1.00 (1.00 to 1.00)"]
    table.write(found, 1, tmp_path / "planted.md")
    text = (tmp_path / "planted.md").read_text()
    assert "Made by `python analyses/planted.py --seeds 1`" in text and "Seeds 0 to 0" in text
    assert f"| deaf | {kept} | find |" in text and text.count("| FAILED |") == 5
