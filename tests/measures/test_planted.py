"""Damage put into known heads of a model that can do the task must be found, and nothing else."""

import copy

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from mechforget.measures import Inputs, grafting, grafting_modules, patching
from mechforget.training import Damage, planted
from tests.measures import toy

PLANTED = ((1, 0), (1, 1), (2, 2), (2, 3))  # whole groups, since k and v belong to two heads


def scrambled(matrix, heads=PLANTED):
    """post: pre with these heads' slices scrambled, and larger than they were."""
    damages = [Damage("scramble", f"L{layer}H{head}.{matrix}", 6) for layer, head in heads]
    model, truth = planted(toy.memorised(), damages, seed=1)
    assert truth["heads"] == [list(head) for head in heads]
    return model


def inputs(hf_post):
    return Inputs(toy.pair()[2].pre, toy.opened(hf_post), toy.encoded())


def strength(effect, direction):
    """|mean effect on log_prob|, [layer, head]."""
    return abs(effect.sel(metric="log_prob", direction=direction).mean("prompt")).squeeze().values


def auroc(strength, planted=PLANTED):
    is_planted = np.zeros(strength.shape, bool)
    is_planted[tuple(np.array(planted).T)] = True
    a, b = strength[is_planted], strength[~is_planted]
    return mannwhitneyu(a, b).statistic / (a.size * b.size)


@pytest.mark.parametrize("matrix", ["q", "k", "v", "o"])
def test_grafting_finds_the_heads_that_were_damaged(matrix):
    """Catches a graft that misses a matrix or finds the damage in heads that weren't touched."""
    found = grafting(inputs(scrambled(matrix)), matrices=("all", matrix)).effect
    for direction in ("restore", "break"):
        for name in ("all", matrix):
            size = strength(found.sel(matrix=name), direction)
            assert auroc(size) >= 0.95, (name, direction, size.round(4))
    elsewhere = found.copy()
    for layer, head in PLANTED:
        elsewhere.loc[dict(layer=layer, head=head)] = 0
    assert (elsewhere.fillna(0) == 0).all()  # equal weights: exactly nothing
    # What is damaged alone in a model that knows its answers can only lose: the sign of `break`.
    # (`restore` may be of either sign, where the other damage is still in place.)
    harm = found.sel(metric="log_prob", direction="break", matrix="all")
    assert harm.mean("prompt").max() > 1e-3


@pytest.mark.parametrize("matrix", ["q", "k", "v", "o"])
def test_z_sees_all_but_damage_to_the_output_matrix_and_head_out_sees_all(matrix):
    """Catches z and head_out confused. In the last layer nothing downstream can take the blame."""
    planted = ((2, 2), (2, 3))
    both = inputs(scrambled(matrix, planted))
    for site in ("z", "head_out"):
        effect = patching(both, site=site).effect
        for direction in ("restore", "break"):
            size = strength(effect, direction)
            if site == "z" and matrix == "o":
                assert (size == 0).all()
            else:
                assert auroc(size, planted) >= 0.95 and size[2, 2:].min() > 1e-3, size


def test_a_clean_pair_has_no_effect_at_all():
    """Catches rounding, batching or chunking shown as forgetting."""
    both = inputs(copy.deepcopy(toy.memorised()))
    modules = grafting_modules(both)
    found = [grafting(both).effect, modules.mlp, modules.rest]
    for site in ("z", "head_out", "pattern", "k", "mlp_out", "resid_mid"):
        found.append(patching(both, site=site).effect)
    for effect in found:
        assert (effect.sel(metric="log_prob") == 0).all()  # no NaN either
        assert (effect.fillna(0) == 0).all()


def test_a_compensated_rotation_moves_z_and_nothing_else():
    """Catches head_out computed with the other checkpoint's W_O: the function is unchanged, so
    only z, which presumes a shared inner basis, may see it."""
    post, truth = planted(toy.memorised(), [Damage("compensate", "L2H2")])
    assert truth["heads"] == [[2, 2], [2, 3]]  # both read the group's values
    np.testing.assert_allclose(
        toy.plain(post)["log_prob"], toy.plain(toy.memorised())["log_prob"], atol=1e-4
    )
    both = inputs(post)
    for direction in ("restore", "break"):
        z = abs(patching(both, site="z").effect.sel(metric="log_prob", direction=direction))
        assert (z.sel(layer=2, head=[2, 3]).max("prompt") > 1e-3).all()
        out = patching(both, site="head_out").effect
        assert abs(out.sel(metric="log_prob", direction=direction)).max() < 1e-4
