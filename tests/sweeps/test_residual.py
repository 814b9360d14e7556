"""The residual stream of one layer, against plain indexing."""

from types import SimpleNamespace

import pytest
import torch

from mechforget.models.sites import Edit
from mechforget.sweeps.residual import Residual
from tests.sweeps.layers import LAYER, POSITIONS, ROWS, Values, drawn, layer, rows

D, SCALE = 4, 0.25


def test_variants_that_start_here_join_as_copies_of_the_base():
    """Catches a variant that joins with another variant's rows, or not at all."""
    t = drawn(2 * ROWS, POSITIONS, D)  # the base, and one slot of an earlier layer
    value = drawn(ROWS, POSITIONS, D, seed=1)
    edits = layer(Values({("resid_pre", None): value}), Edit(0, "z", 0), Edit(LAYER, "resid_pre"))
    found = Residual(edits, joining=1).rewrites()
    assert list(found) == ["resid_pre"]
    grown = found["resid_pre"](t)
    assert torch.equal(grown, torch.cat([t, value]))
    plain = Residual(layer(Values({})), joining=2).rewrites()["resid_pre"](t)
    assert torch.equal(plain, torch.cat([t, t[:ROWS], t[:ROWS]]))
    assert Residual(layer(Values({})), joining=0).rewrites()["resid_pre"](t) is t


@pytest.mark.parametrize("position", [None, 1])
def test_resid_mid_is_reached_through_what_attention_adds(position):
    """Catches a stream before the variant's own edits, a forgotten scale, and other positions."""
    mid, pre = drawn(ROWS, POSITIONS, D, seed=1), drawn(ROWS, POSITIONS, D, seed=2)
    edits = layer(
        Values({("resid_mid", None): mid, ("resid_pre", None): pre}),
        Edit(LAYER, "resid_mid", None, position),
        Edit(LAYER, "resid_pre"),
        spec=SimpleNamespace(scale=SCALE),
    )
    edits.by_site["resid_pre"][0] = (0, edits.by_site["resid_pre"][0][1])  # the same variant's
    found = Residual(edits, joining=2).rewrites()
    assert list(found) == ["resid_pre", "attn_out"]
    stream = found["resid_pre"](drawn(ROWS, POSITIONS, D))
    added = drawn(3 * ROWS, POSITIONS, D, seed=3)
    before = added.clone()
    after = stream + SCALE * found["attn_out"](added)
    at = [1] if position is not None else list(range(POSITIONS))
    others = [p for p in range(POSITIONS) if p not in at]
    torch.testing.assert_close(after[rows(0)][:, at], mid[:, at])
    assert torch.equal(added[rows(0)][:, others], before[rows(0)][:, others])
    assert torch.equal(added[:ROWS], before[:ROWS]) and torch.equal(added[rows(1)], before[rows(1)])


@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "resid_post"])
def test_a_sublayers_output_is_the_donors(site):
    """Catches a site that is written at another point."""
    value = drawn(ROWS, POSITIONS, D, seed=1)
    found = Residual(layer(Values({(site, None): value}), Edit(LAYER, site)), joining=1).rewrites()
    assert list(found) == ["resid_pre", site]
    t = drawn(2 * ROWS, POSITIONS, D)
    want = torch.cat([t[:ROWS], value])
    assert torch.equal(found[site](t), want)
