"""Whose a weight is."""

import pytest
import torch

from mechforget.errors import SweepError
from mechforget.models.cells import cells
from tests.measures import toy
from tests.sweeps.test_shares import MOE
from tests.tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_cells_cover_every_parameter_once_and_are_the_models_heads(family, backend):
    """Would catch: a weight that two cells claim or none, and a fused layout cut wrongly: what a
    head's cell shows must be the head's own weights."""
    model = toy.opened(tiny_model(family), backend)
    if family in MOE and backend == "transformer_lens":
        with pytest.raises(SweepError, match="use nnsight"):
            cells(model)
        return
    for p, mine in cells(model).items():
        claimed = torch.zeros(p.shape, dtype=torch.int)
        for cell in mine:
            rows = torch.arange(p.shape[0]) if cell.rows is None else cell.rows
            if cell.cols is None:
                claimed[rows] += 1
            else:
                claimed[rows[:, None], cell.cols] += 1
            if cell.part in ("W_Q", "W_K", "W_V", "W_O"):
                w, b = model.weight(cell.layer, cell.part, cell.unit)
                shown = p[rows] if cell.cols is None else p[rows[:, None], cell.cols]
                want = b if p.dim() == 1 else w
                assert torch.equal(shown, want) or torch.equal(shown.T, want)
        assert (claimed == 1).all(), mine[0]
    parts = {cell.part for mine in cells(model).values() for cell in mine}
    spec = model.spec
    assert parts >= {"W_Q", "W_K", "W_V", "W_O", "other", "embed"}
    assert ("expert" in parts) == ("router" in parts) == bool(spec.experts)
