"""Patching as measured, against plain hooks scored by loops: signs, metrics, groups, positions."""

import dataclasses

import numpy as np
import pytest
import torch

from mechforget.checkpoints import Sequence
from mechforget.errors import MeasureError, SweepError
from mechforget.measures import forgetting, patching
from mechforget.measures.patching import completeness
from tests import oracle
from tests.measures import toy
from tests.tiny import tiny_tokenizer

CELLS = ((0, 3), (1, 0), (2, 2))  # layer, query head


def want(direction, layer, site, head=None, position=None):
    """metric -> m(post with pre's) - m(post), or m(pre) - m(pre with post's), by plain hooks."""
    hf_pre, hf_post, _ = toy.pair()
    ids = torch.as_tensor(toy.encoded().ids)
    to, of = (hf_post, hf_pre) if direction == "restore" else (hf_pre, hf_post)
    mixed = toy.scores(oracle.patched(to, of, ids, ids, layer, site, head, position))
    base, sign = toy.plain(to), 1 if direction == "restore" else -1
    return {metric: sign * (mixed[metric] - base[metric]) for metric in base}


@pytest.mark.parametrize("site", ["head_out", "z", "v", "k", "mlp_out"])
def test_effects_equal_plain_hooks(site):
    """Catches a flipped sign, a swapped donor, metrics or heads mixed up, groups misassigned."""
    found = patching(toy.pair()[2], site=site)
    heads = site != "mlp_out"
    assert found.effect.dims == ("metric", "direction", "layer", *["head"] * heads, "prompt")
    assert found.attrs["site"] == site
    for layer, head in CELLS:
        unit = {"v": head // 2, "k": head // 2, "mlp_out": None}.get(site, head)
        at = {"layer": layer, **({"head": head} if heads else {})}
        for direction in ("restore", "break"):
            for metric, expected in want(direction, layer, site, unit).items():
                got = found.effect.sel(metric=metric, direction=direction, **at)
                np.testing.assert_allclose(got, expected, atol=5e-5, err_msg=f"{metric} {at}")
    assert abs(found.effect).max() > 0.1 and (found.effect.sel(metric="correct") != 0).any()
    if site in "kv":
        assert found.group.values.tolist() == [0, 0, 1, 1]
        np.testing.assert_array_equal(found.effect.sel(head=0), found.effect.sel(head=1))
        assert (found.effect.sel(head=1) != found.effect.sel(head=2)).any()


def test_chunks_do_not_show():
    """Catches a donor captured on other prompts than the chunk's."""
    inputs = toy.pair()[2]
    whole = patching(inputs, site="z").effect
    parts = patching(dataclasses.replace(inputs, memory=6e-4), site="z").effect
    np.testing.assert_allclose(parts, whole, atol=2e-5)


def test_positions_are_patched_one_by_one_and_padding_is_nothing():
    """Catches a position off by one, and zeros (no effect) where nothing was there to patch."""
    positions = [3, 5, 12]
    found = patching(toy.pair()[2], site="resid_post", positions=positions).effect
    assert found.dims == ("metric", "direction", "layer", "position", "prompt")
    batch = toy.encoded()
    longest = np.array([batch.length[batch.row_prompt == p].max() for p in range(batch.n_prompts)])
    for position in positions:
        for direction in ("restore", "break"):
            at = dict(metric="log_prob", direction=direction, layer=1, position=position)
            expected = want(direction, 1, "resid_post", position=position)["log_prob"]
            expected = np.where(position < longest, expected, np.nan)
            np.testing.assert_allclose(found.sel(at), expected, atol=5e-5)
    assert found.sel(position=12).isnull().any() and found.sel(position=12).notnull().any()
    by_head = patching(toy.pair()[2], site="z", positions=[4]).effect
    at = dict(metric="log_prob", direction="restore", layer=1, head=2, position=4)
    expected = want("restore", 1, "z", 2, 4)["log_prob"]
    np.testing.assert_allclose(by_head.sel(at), expected, atol=5e-5)


def test_the_last_residual_with_pres_norm_and_unembedding_restores_everything():
    """Catches a completeness check that can't fail: without the borrowed norm it isn't 0."""
    hf_pre, hf_post, inputs = toy.pair()
    assert completeness(inputs) < 1e-5
    own = patching(inputs, site="resid_post").effect.sel(
        metric="log_prob", direction="restore", layer=2
    )
    gap = toy.plain(hf_pre)["log_prob"] - toy.plain(hf_post)["log_prob"] - own
    assert abs(gap[:8]).max() > 1e-2  # post's own norm and unembedding moved too
    back = forgetting(inputs).score.sel(metric="log_prob", at="post")  # in its place again
    np.testing.assert_allclose(back, toy.plain(hf_post)["log_prob"], atol=2e-5)


def test_a_sequence_is_its_pairs_along_checkpoint(tmp_path):
    """Catches θ_t compared with θ_{t-1}, and checkpoints out of order."""
    hf_pre, hf_post, inputs = toy.pair()
    for name, model in (("0", hf_pre), ("1", hf_pre), ("2", hf_post)):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    found = patching(Sequence([tmp_path / n for n in "012"]), toy.task(), site="mlp_out").effect
    assert found.checkpoint.values.tolist() == [1, 2]
    assert (found.sel(checkpoint=1).fillna(0) == 0).all()  # the same model: exactly nothing
    one = patching(inputs, site="mlp_out").effect
    np.testing.assert_allclose(found.sel(checkpoint=2), one, atol=1e-6)


def test_a_site_that_is_not_there_is_refused():
    """Catches an expensive run that ends in a KeyError."""
    with pytest.raises(SweepError, match="site 'heads' is unknown; sites: "):
        patching(toy.pair()[2], site="heads")


def test_what_is_not_there_is_refused(monkeypatch):
    """Would catch: effects of 0 at a position that no row has, and NaN of a head that no layer has,
    after the whole sweep."""
    _, _, inputs = toy.pair()
    monkeypatch.setattr(type(inputs.pre), "run", None)  # nothing is run
    width = inputs.encoded.ids.shape[1]
    for position in (-1, width):
        with pytest.raises(MeasureError, match=f"no position {position}: want 0 to {width - 1}"):
            patching(inputs, site="resid_pre", positions=[0, position])
    with pytest.raises(MeasureError, match="no head L0H99: 3 layers of 4"):
        patching(inputs, site="z", heads=[(0, 1), (0, 99)])
