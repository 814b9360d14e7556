"""Sets of heads: judged on prompts that did not choose them, against plain multi-head hooks."""

import numpy as np
import pytest
import torch

from mechforget.errors import MeasureError
from mechforget.measures import patching, top_sets
from tests import oracle
from tests.measures import toy


def restored(chosen):
    """m(post with these heads' outputs <- pre) - m(post), all at once, by plain hooks."""
    hf_pre, hf_post, _ = toy.pair()
    ids = torch.as_tensor(toy.encoded().ids)
    hooks = []
    for layer in {layer for layer, _ in chosen}:
        o, theirs = (oracle.places(m, layer)[2] for m in (hf_post, hf_pre))
        z = oracle.get(hf_pre, ids, theirs, "in")
        columns = [oracle.z_columns(hf_post, head) for at, head in chosen if at == layer]
        seen = {}

        def read(t, seen=seen):
            seen["z"] = t

        def swap(t, o=o, theirs=theirs, z=z, columns=columns, seen=seen):
            for c in columns:
                t = t + z[..., c] @ oracle.w_o(theirs, c) - seen["z"][..., c] @ oracle.w_o(o, c)
            return t

        hooks += [(o, "in", read), (o, "out", swap)]
    mixed, base = toy.scores(oracle.run(hf_post, ids, hooks)), toy.plain(hf_post)
    return {metric: mixed[metric] - base[metric] for metric in base}


def test_sets_are_chosen_on_one_half_and_judged_on_the_other():
    """Catches the winner's curse, a set judged by its own prompts, sets that aren't the top ones,
    prompts in the other half's place, and random sets that contain what was chosen."""
    inputs, batch = toy.pair()[2], toy.encoded()
    single = patching(inputs).effect.sel(metric="log_prob", direction="restore")
    found = top_sets(inputs, effect=single, sizes=(1, 2, 4, 50))
    assert found.k.values.tolist() == [1, 2, 4]  # 12 heads: no set of more than 6
    assert found.random.shape == (3, 3, 20, batch.n_prompts)
    halves = found.judged_in.values
    assert set(halves) == {0, 1} and len({*batch.cluster[halves == 0]}) == 5
    assert not {*batch.cluster[halves == 0]} & {*batch.cluster[halves == 1]}
    for half in (0, 1):
        judged = halves == half
        mean = single.values[:, :, ~judged].mean(-1)  # chosen on the others
        order = [divmod(int(i), 4) for i in np.argsort(-mean.ravel())]
        for i, k in enumerate((1, 2, 4)):
            chosen = [tuple(c) for c in found.chosen.values[half, i].tolist()]
            assert chosen[:k] == order[:k] and set(chosen[k:]) <= {(-1, -1)}
            for metric, want in restored(chosen[:k]).items():
                got = found.top.sel(metric=metric, k=k)[judged]
                np.testing.assert_allclose(got, want[judged], atol=5e-5)
    own = [
        divmod(int(i), 4) for i in np.argsort(-single.values[:, :, halves == 0].mean(-1).ravel())
    ]
    assert own[:4] != [tuple(c) for c in found.chosen.values[0, 2]]  # the halves choose differently


def test_random_sets_have_the_same_layers_and_none_of_the_chosen():
    """Catches a control that is easier or harder than the set it controls for: each draw is made
    again from its stored seed alone, and patched by plain hooks."""
    inputs = toy.pair()[2]
    single = patching(inputs).effect.sel(metric="log_prob", direction="restore")
    found = top_sets(inputs, effect=single, sizes=(2,), seed=4)
    for half in (0, 1):
        judged = found.judged_in.values == half
        chosen = [tuple(c) for c in found.chosen.values[half, 0].tolist()]
        layers = sorted(layer for layer, _ in chosen)
        for draw in (0, 7):
            rng = np.random.default_rng(found.seeds.values[half, 0, draw])
            drawn = []
            for layer in sorted(set(layers)):
                free = [h for h in range(4) if (layer, h) not in chosen]
                drawn += [(layer, h) for h in rng.choice(free, layers.count(layer), replace=False)]
            want = restored([(layer, int(h)) for layer, h in drawn])["log_prob"]
            got = found.random.sel(metric="log_prob", k=2).isel(draw=draw)[judged]
            np.testing.assert_allclose(got, want[judged], atol=5e-5)


def test_effects_of_another_pair_or_axis_order():
    """Catches heads ranked along the wrong axis, and an effect of other prompts."""
    inputs = toy.pair()[2]
    single = patching(inputs).effect.sel(metric="log_prob", direction="restore")
    turned = top_sets(inputs, effect=single.transpose("prompt", "head", "layer"), sizes=(2,))
    np.testing.assert_array_equal(turned.chosen, top_sets(inputs, effect=single, sizes=(2,)).chosen)
    with pytest.raises(MeasureError, match="is not of this pair and task"):
        top_sets(inputs, effect=single[:, :, :3])
