"""Patterns before and after: against scipy row by row, closed forms, hand-made roles."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from mechforget.errors import MeasureError
from mechforget.measures import Inputs, attention_change, attention_roles
from mechforget.measures.attention_change import HALF, change, js
from tests.measures import toy
from tests.tiny import tiny_model


def patterns(hf_model, rows):
    """[layer, row, head, query, key] as Hugging Face returns them."""
    with torch.no_grad():
        out = hf_model(torch.as_tensor(toy.encoded().ids[rows]), output_attentions=True)
    return torch.stack(out.attentions).double().numpy()


def with_sink(row):
    return np.r_[row, max(0, 1 - row.sum())]


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_every_number_equals_scipy_row_by_row(family):
    """Catches natural logs, a missing square, padding or the first query in the mean, the wrong
    row of a prompt that has two, the wrong last token, and sinks that are lost."""
    if family == "llama":
        hf_pre, hf_post, inputs = toy.pair()
    else:
        hf_pre, hf_post = tiny_model(family, 1), tiny_model(family, 0)
        inputs = Inputs(toy.opened(hf_pre), toy.opened(hf_post), toy.encoded())
    batch = toy.encoded()
    rows = [int(np.flatnonzero(batch.row_prompt == p)[0]) for p in range(batch.n_prompts)]
    pre, post = patterns(hf_pre, rows), patterns(hf_post, rows)
    assert (post.sum(-1).min() < 0.99) == (family == "gpt_oss")
    found = attention_change(inputs)
    assert found.js.dims == ("layer", "head", "prompt") and found.js.attrs["units"] == "bit"
    assert found.entropy.dims == ("at", "layer", "head", "prompt")
    for layer, head, prompt in ((0, 0, 0), (1, 2, 6), (2, 3, 9), (1, 1, 13)):
        queries = range(1, batch.length[rows[prompt]])
        p, q = pre[layer, prompt, head], post[layer, prompt, head]
        each = [jensenshannon(with_sink(p[i]), with_sink(q[i]), base=2) ** 2 for i in queries]
        at = dict(layer=layer, head=head, prompt=prompt)
        np.testing.assert_allclose(found.js.sel(at), np.mean(each), atol=1e-5)
        last = batch.prompt_length[rows[prompt]] - 1
        np.testing.assert_allclose(found.js_last.sel(at), each[last - 1], atol=1e-5)
        for when, a in (("pre", p), ("post", q)):
            bits = np.mean([entropy(with_sink(a[i]), base=2) for i in queries])
            np.testing.assert_allclose(found.entropy.sel(at | {"at": when}), bits, atol=1e-5)
            mass = np.mean([a[i, 0] for i in queries])
            np.testing.assert_allclose(found["first"].sel(at | {"at": when}), mass, atol=1e-5)
    assert found.js.max() > 0.01


def test_memory_does_not_show():
    """Catches chunks whose shorter padding changes a mean."""
    inputs = toy.pair()[2]
    whole = attention_change(inputs)
    parts = attention_change(dataclasses.replace(inputs, memory=3e-4))
    for name in whole.data_vars:
        # Another chunk is another shape: logits of a pattern, up to 10, round to 1e-6 of a bit.
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-5)


def test_closed_forms_and_padding():
    """Catches bits that aren't: one where nothing overlaps, 0 where all is the same; and what
    stands beyond a prompt's end."""
    batch = toy.encoded()
    rows = np.searchsorted(batch.row_prompt, np.arange(batch.n_prompts))
    n = batch.ids.shape[1]
    shape = (1, batch.n_prompts, 2, n, n)
    first, second = np.zeros(shape), np.zeros(shape)
    first[..., 0], second[..., 1] = 1, 1
    uniform = np.broadcast_to(np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None], shape).copy()
    padded = np.arange(n)[None] >= batch.length[rows, None]
    uniform.transpose(1, 3, 0, 2, 4)[padded] = np.nan
    apart, same = change(first, second, batch), change(uniform, uniform, batch)
    np.testing.assert_allclose(apart.js, 1)
    np.testing.assert_allclose(apart.js_last, 1)
    np.testing.assert_allclose(same.js, 0, atol=1e-12)
    np.testing.assert_allclose(apart["first"].sel(at="pre"), 1)
    np.testing.assert_allclose(apart["first"].sel(at="post"), 0)
    np.testing.assert_allclose(apart.entropy, 0, atol=1e-12)
    for prompt in (0, 6, 11):
        keys = np.arange(2, batch.length[rows[prompt]] + 1)
        got = same.entropy.isel(at=0, layer=0, head=1, prompt=prompt)
        np.testing.assert_allclose(got, np.log2(keys).mean(), atol=1e-12)
    half = js(np.array([[0.5, 0.5]]), np.array([[0.5, 0.0]]))  # the rest is one more key
    np.testing.assert_allclose(half, 0.5)
    first[0, 3, 1, 2, 0] = np.nan
    for pre, post in ((first, second), (second, first)):
        with pytest.raises(MeasureError, match="attention patterns hold NaN: use float32"):
            change(pre, post, batch)


class ByHand:
    """A model of two heads: one always looks one after the last time, one at the token before."""

    spec = dataclasses.replace(toy.opened(tiny_model()).spec, layers=1, heads=2)
    device = torch.device("cpu")

    def serves(self, layer, name):
        return True

    def run(self, ids, rewrites, parent):
        n = ids.shape[1]
        pattern = torch.zeros(len(ids), 2, n, n)
        for sequence, row in enumerate(ids.tolist()):
            assert row[:HALF] == row[HALF:]
            for query in range(n):
                pattern[sequence, 0, query, (query - HALF + 1) % n] = 0.75
                pattern[sequence, 1, query, max(query - 1, 0)] = 1
        rewrites[0, "pattern"](pattern)


def test_roles_of_a_hand_made_pattern_and_of_plain_attention():
    """Catches an offset of one, the first half counted, head and sequence swapped."""
    found = attention_roles(Inputs(ByHand(), ByHand(), toy.encoded()))
    assert found.induction.dims == ("at", "layer", "head", "sequence")
    assert found.induction.shape == (2, 1, 2, 50)
    np.testing.assert_allclose(found.induction.sel(head=0), 0.75)
    np.testing.assert_allclose(found.induction.sel(head=1), 0)
    np.testing.assert_allclose(found.previous.sel(head=1), 1)
    _hf_pre, hf_post, inputs = toy.pair()
    found = attention_roles(inputs, seed=3)
    again = attention_roles(inputs, seed=3)
    np.testing.assert_array_equal(found.previous, again.previous)
    ids = np.tile(np.random.default_rng(3).integers(0, 400, (50, HALF)), 2)
    with torch.no_grad():
        out = hf_post(torch.as_tensor(ids), output_attentions=True).attentions
    got = [float(out[1][7, 2, i, i - HALF + 1]) for i in range(HALF, 2 * HALF)]
    at = dict(at="post", layer=1, head=2, sequence=7)
    np.testing.assert_allclose(found.induction.sel(at), np.mean(got), atol=1e-6)


def test_models_without_readable_patterns_are_refused():
    """Catches a crash in the middle of a study."""

    class Closed(ByHand):
        def serves(self, layer, name):
            return False

    for measure in (attention_change, attention_roles):
        with pytest.raises(MeasureError, match="attention patterns of a llama model cannot be"):
            measure(Inputs(Closed(), Closed(), toy.encoded()))
