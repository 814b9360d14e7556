"""Products of prompts' gradients, against gradients that autograd makes one by one."""

import numpy as np
import pytest
import torch

from mechforget.models.cells import cells
from mechforget.sweeps import gram as module
from mechforget.sweeps.gram import gram
from tests.measures import toy
from tests.sweeps.test_shares import MOE, ODD, of_family
from tests.tiny import FAMILIES, tiny_model

CASES = [(f, b) for f in sorted(FAMILIES) for b in ("transformer_lens", "nnsight")]
CASES += [(f, "nnsight") for f in ODD]


@pytest.mark.parametrize(
    ("family", "backend"), [c for c in CASES if c not in [(f, "transformer_lens") for f in MOE]]
)
def test_every_cell_against_gradients_made_one_by_one(family, backend):
    """Would catch: a head's rows taken from another, tokens given to another prompt, a tied
    matrix's two uses that aren't crossed, an expert's gradient from tokens it didn't see, an
    embedding whose input isn't its ids (OPT)."""
    model = toy.opened(of_family(family), backend)
    batch = toy.encoded().subset(np.arange(5))
    own = cells(model)
    found = gram(model, batch)
    for p in own:
        p.requires_grad_()
    each = []
    for prompt in range(5):
        one = batch.subset(np.array([prompt]))
        right = torch.as_tensor(~one.read_wrong)
        logits = model.run(torch.as_tensor(one.ids), {})[one.read_row, one.read_position]
        score = logits.log_softmax(-1)[range(len(right)), one.read_target][right].sum()
        made = torch.autograd.grad(score, list(own), allow_unused=True)
        vectors = {}
        for (p, mine), g in zip(own.items(), made, strict=True):
            g = torch.zeros(p.shape) if g is None else g
            for cell in mine:
                rows = torch.arange(p.shape[0]) if cell.rows is None else cell.rows
                part = g[rows] if cell.cols is None else g[rows[:, None], cell.cols]
                key = (cell.part, cell.layer, cell.unit)
                vectors.setdefault(key, []).append(part.flatten())
        each.append({k: torch.cat(v).double() for k, v in vectors.items()})
    for key in each[0]:
        matrix = torch.stack([v[key] for v in each])
        want = (matrix @ matrix.T).numpy()
        got = found.get(key, np.zeros_like(want))
        np.testing.assert_allclose(got, want, atol=1e-4 * max(1, abs(want).max()), err_msg=str(key))


@pytest.mark.parametrize("products", [True, False])
@pytest.mark.parametrize("largest", [1.0, 6e5])
def test_little_memory_leaves_nothing_out(largest, products, monkeypatch):
    """Would catch: experts that are silently missing where all prompts' gradients of them don't
    fit, pairs of prompts of different blocks that are lost or counted twice, and experts that must
    be differentiated because their products can't be seen."""
    model, batch = toy.opened(tiny_model("gpt_oss"), "nnsight"), toy.encoded().subset(np.arange(7))
    want = gram(model, batch)
    monkeypatch.setattr(module, "LARGEST", largest)
    if not products:
        monkeypatch.setattr(module, "_experts", lambda *_: False)
    found = gram(model, batch)
    assert (
        set(found)
        == set(want)
        == {(c.part, c.layer, c.unit) for p in cells(model).values() for c in p}
    )
    for key, value in want.items():
        np.testing.assert_allclose(found[key], value, atol=1e-4 * max(1, abs(value).max()))
