"""What a sweep will run: its order, its cost, and which edits a name stands for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechforget.errors import SweepError
from mechforget.models.sites import ACTIVATIONS, MATRICES, Edit, Spec
from mechforget.sweeps.plan import Plan, graft, heads, is_grouped, single, units_name


def spec(**change):
    shape = dict(family="llama", layers=3, heads=4, kv_heads=2, d_model=32, d_vocab=400)
    sites = frozenset({*ACTIVATIONS, *MATRICES})
    return Spec(**(dict(shape, sites=sites, residual_scale=1.0) | change))


edits = st.builds(Edit, st.integers(0, 5), st.sampled_from(["z", "q", "W_O"]), st.integers(0, 3))
variants = st.lists(st.lists(edits, min_size=1, max_size=3).map(tuple), max_size=12)


@given(variants)
def test_slots_follow_the_layers_at_which_variants_start(given_variants):
    """Catches a slot whose rows aren't there yet, one that is lost, and results in another's place."""
    plan = Plan.of(given_variants)
    assert sorted(plan.order) == list(range(len(given_variants)))
    assert plan.variants == tuple(given_variants[i] for i in plan.order)
    starts = [min(e.layer for e in v) for v in plan.variants]
    assert starts == sorted(starts)
    entering = plan.entering()
    assert {layer: starts.count(layer) for layer in set(starts)} == entering
    for (layer, site), todo in plan.edits().items():
        there = sum(n for start, n in entering.items() if start <= layer)
        for slot, edit in todo:
            assert slot < there and edit in plan.variants[slot]
            assert (edit.layer, edit.site) == (layer, site)
    assert sum(map(len, plan.edits().values())) == sum(map(len, given_variants))
    # Brute force: the base runs all 6 blocks, a variant those from its start on.
    blocks = [(None, at) for at in range(6)]
    blocks += [(i, at) for i, s in enumerate(starts) for at in range(s, 6)]
    assert plan.layer_runs(6) == len(blocks)


def test_single_names_every_place_once_in_the_order_of_its_results():
    """Catches heads and groups confused, and an order that `labelled`'s reshape doesn't expect."""
    for site, units in (("z", 4), ("pattern", 4), ("k", 2), ("v", 2), ("W_K", 2), ("W_Q", 4)):
        want = [(Edit(layer, site, u),) for layer in range(3) for u in range(units)]
        assert single(spec(), site) == want
    assert single(spec(), "mlp_out") == [(Edit(layer, "mlp_out"),) for layer in range(3)]
    got = single(spec(layers=1), "v", positions=(4, 2))
    assert got == [(Edit(0, "v", u, p),) for u in range(2) for p in (4, 2)]


def test_grafts_take_the_query_heads_group():
    """Catches k and v taken from the group with the head's own number."""
    assert graft(spec(), 1, 3, "W_K") == (Edit(1, "W_K", 1),)
    assert graft(spec(), 1, 3, "W_O") == (Edit(1, "W_O", 3),)
    want = {Edit(2, "W_Q", 1), Edit(2, "W_K", 0), Edit(2, "W_V", 0), Edit(2, "W_O", 1)}
    assert set(graft(spec(), 2, 1, "all")) == want
    assert [spec(heads=6, kv_heads=3).group(h) for h in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [spec(kv_heads=1).group(h) for h in range(4)] == [0, 0, 0, 0]
    assert heads("z", [(2, 0), (0, 3)]) == (Edit(0, "z", 3), Edit(2, "z", 0))


def test_which_sites_have_heads():
    """Catches a site whose results would get a head axis it doesn't have, or lose one."""
    with_heads = {"q", "k", "v", "z", "pattern", "head_out", *MATRICES}
    assert {s for s in (*ACTIVATIONS, *MATRICES) if units_name(s) == "head"} == with_heads
    assert {s for s in ACTIVATIONS if units_name(s) == "expert"} == {"expert_out"}
    assert {s for s in with_heads if is_grouped(s)} == {"k", "v", "W_K", "W_V"}


def test_sites_that_are_not_there_are_refused():
    """Catches a sweep over a dead site, and a misspelt name that runs as something else."""
    with pytest.raises(SweepError, match="site 'zz' is unknown; sites: resid_pre"):
        single(spec(), "zz")
    with pytest.raises(SweepError, match="a phi model has no site 'resid_mid'; it has: z"):
        single(spec(family="phi", sites=frozenset({"z"})), "resid_mid")
