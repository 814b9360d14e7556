"""Donors' values: on several devices, and on their way to a server."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mechforget.models import proof
from mechforget.models.nnsight import NNsight
from mechforget.models.sites import Edit
from mechforget.sweeps.donor import Donor, donor_values
from mechforget.sweeps.plan import Plan, single
from mechforget.sweeps.run import _Run
from mechforget.sweeps.weights import between, borrowed
from tests.sweeps.test_run import encoded, opened
from tests.tiny import tiny_model

Some: Any = SimpleNamespace
HERE = "meta"  # as if it were a GPU: what is on the CPU must be moved to it


class Scale(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return x * self.weight


def model(**more):
    spec = Some(scale=1.0, layers=2)
    offloaded = torch.empty(16, 8)
    return Some(spec=spec, weight=lambda *_: (offloaded, None), **more)


def test_values_of_several_devices_meet_on_one():
    """Catches `--device auto` on two GPUs, or one and memory: what enters a layer is seen where it
    comes from, and a weight may be offloaded."""
    before, z = torch.empty(2, 3, 16), torch.empty(2, 3, 4, 8, device=HERE)
    added = torch.empty(2, 3, 16, device=HERE)
    donor = Donor(model(), {(1, "resid_pre"): before, (1, "attn_out"): added, (1, "z"): z})
    assert donor.at(Edit(1, "resid_mid")).device == torch.device(HERE)
    assert donor.at(Edit(1, "head_out", 0)).device == torch.device(HERE)
    batch = Some(fed=np.zeros((2, 3)), tree=None, read_at=([0], [0]))
    run = _Run(model(), Plan.of([(Edit(1, "resid_mid"),)]), donor, batch)
    rewrites = run.rewrites()
    rewrites[1, "resid_pre"](before)
    grown = torch.empty(4, 3, 16, device=HERE)
    assert rewrites[1, "attn_out"](grown).device == torch.device(HERE)


def test_a_proof_adds_what_several_devices_hold(monkeypatch):
    """Catches the same in the proof."""
    monkeypatch.setattr(torch.Tensor, "item", lambda t: 1.0)
    own = model(layers=1, heads=4, serves=lambda *_: False)
    seen = {(0, name): torch.empty(2, 3, 16, device=HERE) for name in ("attn_out", "mlp_out")}
    seen |= {(0, name): torch.empty(2, 3, 16, device=HERE) for name in ("attn_raw", "resid_post")}
    seen |= {(0, "resid_pre"): torch.empty(2, 3, 16)}
    seen |= {(0, "z"): torch.empty(2, 3, 4, 8, device=HERE)}
    proof._residual_scale(own, seen)
    proof._heads_sum(own, seen)


def test_a_norm_is_called_where_its_weight_is():
    """Catches a norm of one layer that is given the last layer's device."""
    first, second = "cuda:0", "cuda:1"  # that needn't be there
    with FakeTensorMode(), torch.no_grad():
        norm = Scale(torch.empty(16, device=first))
        own = Some(
            module=Some(get_submodule=lambda _: norm),
            envoy=Some(get=lambda _: norm),
            _norm=lambda *_: "norm",
        )
        found = NNsight.norm(own, 0, "attn_post", torch.empty(3, 16, device=second))
        assert found.device == torch.device(first)


@pytest.mark.parametrize("t", [0.3, 1.0])
def test_borrowed_weights_come_to_the_borrower(t, monkeypatch):
    """Catches a layer of two models that `auto` has put on different devices."""
    monkeypatch.setattr(torch, "equal", lambda a, b: bool(a.device != b.device))
    pair = [
        Some(module=layer, parameters=lambda *_, layer=layer: list(layer.parameters()))
        for layer in (torch.nn.Linear(4, 4, device=HERE), torch.nn.Linear(4, 4))
    ]
    with borrowed(*pair, [("mlp", None)]):
        assert {p.device for p in pair[0].module.parameters()} == {torch.device(HERE)}
    with between(*pair, t):
        assert {p.device for p in pair[0].module.parameters()} == {torch.device(HERE)}


@pytest.mark.parametrize("half", [False, True])
def test_what_is_sent_is_no_larger_than_its_values(half):
    """Catches views, which are pickled with the whole layer: once for every head."""
    found = opened(tiny_model())
    variants = [v for site in ("z", "pattern", "mlp_out") for v in single(found.spec, site)]
    for edit, value in donor_values(found, encoded(), variants, half_precision=half).items():
        assert value.untyped_storage().nbytes() == value.nbytes, edit
