"""Scores before and after, against a plain forward and loops over the text."""

import dataclasses

import numpy as np
import pytest

from mechforget.checkpoints import Pair, Sequence
from mechforget.errors import MeasureError
from mechforget.measures import forgetting
from mechforget.measures.forgetting import change
from tests.measures import toy
from tests.tiny import tiny_tokenizer


def test_scores_equal_a_plain_forward_at_any_memory():
    """Catches pre and post swapped, a wrong read, a shared row misread, and order lost in chunks."""
    hf_pre, hf_post, inputs = toy.pair()
    pre, post = toy.plain(hf_pre), toy.plain(hf_post)
    assert pre["correct"].all() and 0 < post["correct"].mean() < 1
    assert np.isnan(pre["logit_diff"]).any() and not np.isnan(pre["logit_diff"]).all()
    for memory in (1e-4, 1.0):
        found = forgetting(dataclasses.replace(inputs, memory=memory))
        assert found.score.dims == ("metric", "at", "prompt") and found.score.dtype == np.float64
        for metric in pre:
            for at, want in (("pre", pre), ("post", post)):
                got = found.score.sel(metric=metric, at=at)
                np.testing.assert_allclose(got, want[metric], atol=2e-5, err_msg=metric)
        preferred = found.score.sel(metric="preferred", at="post").values
        nan = np.isnan(post["logit_diff"])
        np.testing.assert_array_equal(np.isnan(preferred), nan)
        np.testing.assert_array_equal(preferred[~nan], post["logit_diff"][~nan] > 0)
        lost = change(found.score).sel(metric="log_prob")
        np.testing.assert_allclose(lost, pre["log_prob"] - post["log_prob"], atol=4e-5)
        assert lost.mean() > 0.1  # forgotten is positive
    countries = dict.fromkeys(toy.task().rows["subject"])
    number = {country: i for i, country in enumerate(countries)}
    np.testing.assert_array_equal(found.cluster, [number[c] for c in toy.task().rows["subject"]])


def test_pairs_sequences_and_nothing_else(tmp_path):
    """Catches a sequence measured against the wrong first checkpoint, and attributes that don't
    say how a number was made."""
    hf_pre, hf_post, inputs = toy.pair()
    later = toy.damaged(hf_pre, amount=0.7)
    for name, model in (("0", hf_pre), ("1", hf_post), ("2", later)):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    folders = [tmp_path / name for name in "012"]
    found = forgetting(Sequence(folders), toy.task())
    assert found.sizes["checkpoint"] == 2 and found.checkpoint.values.tolist() == [1, 2]
    for checkpoint, model in ((1, hf_post), (2, later)):
        got = found.score.sel(checkpoint=checkpoint, metric="log_prob")
        want = [toy.plain(hf_pre)["log_prob"], toy.plain(model)["log_prob"]]
        np.testing.assert_allclose(got, want, atol=2e-5)
    one = forgetting(Pair(*folders[:2]), toy.task())
    np.testing.assert_array_equal(one.score, forgetting(inputs).score)
    said = {
        "measure": "forgetting",
        "settings": '{"metric": null}',
        "task": "toy",
        "source": "1706.08840",
    }
    said |= {"backend": "transformer_lens", "device": "cpu", "dtype": "float32"}
    assert one.attrs == said
    with pytest.raises(MeasureError, match=r"forgetting\(pair, task\): the task is missing"):
        forgetting(Pair(*folders[:2]))
    with pytest.raises(MeasureError, match="got str, want a Pair or a Sequence"):
        forgetting("pre", toy.task())
