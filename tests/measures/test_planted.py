"""Damage put into known heads of a model that can do the task must be found, and nothing else."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from mechforget.measures import Inputs, grafting, grafting_modules, patching
from tests import oracle
from tests.measures import toy

PLANTED = ((1, 0), (1, 1), (2, 2), (2, 3))  # whole groups, since k and v belong to two heads


def scrambled(matrix, heads=PLANTED):
    """post: pre with these heads' slices drawn anew, larger than they were."""
    model, generator = copy.deepcopy(toy.memorised()), torch.Generator().manual_seed(1)
    for layer, head in heads:
        _, attention, o, _, _ = oracle.places(model, layer)
        columns = oracle.z_columns(model, head)
        if matrix == "o":
            slice_ = o.weight[:, columns]
        else:
            unit = head if matrix == "q" else head // 2
            module, rows = oracle.qkv_columns(model, matrix, unit)
            slice_ = getattr(attention, module).weight[rows]
        noise = torch.randn(slice_.shape, generator=generator)
        slice_.copy_(8 * slice_.std() * noise)
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
    post = copy.deepcopy(toy.memorised())
    layer, group, generator = 2, 1, torch.Generator().manual_seed(0)
    _, attention, o, _, _ = oracle.places(post, layer)
    r, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    _, rows = oracle.qkv_columns(post, "v", group)
    attention.v_proj.weight[rows] = r @ attention.v_proj.weight[rows]
    for head in (2, 3):  # both heads of the group read the rotated values
        columns = oracle.z_columns(post, head)
        o.weight[:, columns] = o.weight[:, columns] @ r.T
    np.testing.assert_allclose(
        toy.plain(post)["log_prob"], toy.plain(toy.memorised())["log_prob"], atol=1e-4
    )
    both = inputs(post)
    for direction in ("restore", "break"):
        z = abs(patching(both, site="z").effect.sel(metric="log_prob", direction=direction))
        assert (z.sel(layer=2, head=[2, 3]).max("prompt") > 1e-3).all()
        out = patching(both, site="head_out").effect
        assert abs(out.sel(metric="log_prob", direction=direction)).max() < 1e-4
