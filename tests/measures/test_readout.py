"""Erased or misread: rotations and overwriting planted in arrays and in models, and lstsq."""

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from mechforget.errors import MeasureError
from mechforget.measures import Inputs, readout
from mechforget.measures.neutral_text import SENTENCES, neutral
from mechforget.measures.readout import PROBES, coded, held_out, lacks_for_probes, probes
from mechforget.statistics.ridge import ridge  # its choice of a penalty has a test of its own
from mechforget.tasks.task import Task
from tests import oracle
from tests.measures import toy
from tests.statistics.test_ridge import augmented
from tests.tiny import tiny_model, tiny_tokenizer

ANSWERS = ("one", "two", "red", "Paris")


def planted(change, n=60, d=48, seed=0):
    """probes() of a stream with the answer's direction in it and much else; post = change(pre)."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(12, d)) + 3
    target = rng.integers(0, 12, n)
    inside = np.linalg.qr(rng.normal(size=(d, d)))[0]
    pre = rows[target] @ inside + rng.normal(size=(n, d)) + 10
    text = rng.normal(size=(6 * d, d)) * 2 + 10
    post, post_text = change(pre, rng), change(text, np.random.default_rng(seed + 1))
    r, _ = orthogonal_procrustes(post_text - post_text.mean(0), text - text.mean(0))
    aligned = (post - post_text.mean(0)) @ r + text.mean(0)
    _, score = probes(pre, post, aligned, target, coded(rows), np.arange(n) // 2)
    return dict(zip(PROBES, score.mean(1), strict=True))


def test_rotated_erased_and_kept_arrays():
    """Catches a and b exchanged, labels that leak into the held-out score, a chance level that
    isn't one."""
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(48, 48)))[0]
    found = planted(lambda x, rng: x @ turn)
    assert found["pre"] > 0.8 and found["as_is"] < 0.45
    assert found["aligned"] > 0.8 and abs(found["refit"] - found["pre"]) < 0.05
    found = planted(lambda x, rng: rng.normal(size=x.shape))
    assert found["pre"] > 0.8 and found["refit"] < 0.45
    found = planted(lambda x, rng: x)
    assert found["as_is"] == found["refit"] == found["pre"] > 0.8
    chance = (1 / np.arange(1, 13)).mean()
    assert abs(found["shuffled"] - chance) < 0.1


def test_equals_lstsq_fold_by_fold():
    """Catches a fold read by a map that it helped to fit, scores by dot product or distance."""
    rng = np.random.default_rng(1)
    target, cluster = rng.integers(0, 5, 30), np.arange(30) // 2
    rows, fold = rng.normal(size=(5, 8)) * [[1], [5], [1], [1], [9]], cluster % 4
    x = rows[target] @ rng.normal(size=(8, 10)) + rng.normal(size=(30, 10))
    other = x + rng.normal(size=x.shape)
    got = held_out(x, (x, other), target, coded(rows), cluster, fold)
    apart = rows - rows.mean(0)
    for f in range(4):
        there = fold != f
        penalty = ridge(x[there], apart[target[there]], cluster[there]).penalty
        fitted = augmented(x[there], apart[target[there]], penalty)
        for rank, z in zip(got, (x, other), strict=True):
            for i in np.flatnonzero(fold == f):
                guess = fitted(z[i][None])[0]
                cosine = apart @ guess / np.linalg.norm(apart, axis=1)
                assert rank[i] == 1 + (cosine > cosine[target[i]]).sum()


def test_ties_are_in_the_middle():
    """Catches a constant stream that is scored as if it knew the first, or every, answer."""
    codes = coded(np.eye(4))
    target = np.arange(16) % 4
    (rank,) = held_out(np.ones((16, 3)), (np.ones((16, 3)),), target, codes, np.arange(16), target)
    assert 2 <= rank.mean() <= 4


@cache
def task():
    rng = np.random.default_rng(0)
    names = sorted({"".join(rng.choice(list("bdfgkmnprst"), 3)) for _ in range(60)})[:40]
    rows = [
        {"prompt": f"People from {name} are", "answer": ANSWERS[i], "subject": name}
        for name, i in zip(names, rng.integers(0, 4, 40), strict=True)
    ]
    return Task("groups", pd.DataFrame(rows), "groups")


@cache
def encoded():
    return task().encode(tiny_tokenizer())


def candidates():
    return {tiny_tokenizer()(f" {answer}")["input_ids"][0] for answer in ANSWERS}


@cache
def trained():
    """A Llama whose norms only divide, so that its stream may be turned, and that knows the task."""
    model, batch = tiny_model("llama", 3), encoded()
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data.fill_(1)
            p.requires_grad_(False)
    right = ~batch.read_wrong
    ids = torch.as_tensor(batch.ids)
    at = batch.read_row[right], batch.read_position[right]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(60):
        logits = model(ids, use_cache=False).logits[at]
        loss = torch.nn.functional.cross_entropy(logits, torch.as_tensor(batch.read_target[right]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    return model.eval().requires_grad_(False)


def turned(model):
    """The same function in another basis of its stream."""
    model = copy.deepcopy(model)
    q, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight @ q
    model.lm_head.weight.data = model.lm_head.weight @ q
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = getattr(layer.self_attn, name).weight
            weight.copy_(weight @ q)
        for name in ("gate_proj", "up_proj"):
            weight = getattr(layer.mlp, name).weight
            weight.copy_(weight @ q)
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.copy_(q.T @ linear.weight)
    return model


def blinded(model):
    """The last token sees no other: attention writes nothing."""
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
    return model


def measured(change):
    pre = trained()
    text = neutral(tiny_tokenizer())
    return readout(Inputs(toy.opened(pre), toy.opened(change(pre)), encoded(), neutral=text))


def test_a_turned_stream_is_misread():
    """Catches probes of the wrong checkpoint, a rotation the wrong way round, neutral text of one
    checkpoint for both. The function is the same; only who reads by the old basis fails."""
    ids = torch.as_tensor(encoded().ids)
    same = [oracle.run(m, ids) for m in (trained(), turned(trained()))]
    torch.testing.assert_close(*same, atol=2e-3, rtol=0)
    found = measured(turned)
    score = found.score.mean("prompt").sel(depth=3)
    assert score.sel(probe="pre") > 0.95 and score.sel(probe="as_is") < 0.85
    assert score.sel(probe="as_is") - score.sel(probe="shuffled") < 0.2
    assert score.sel(probe="aligned") > 0.95
    assert abs(score.sel(probe="refit") - score.sel(probe="pre")) < 0.05
    text = neutral(tiny_tokenizer())
    assert found.attrs["tokens"] == (text.length - 1).sum()  # never a first token
    assert found.verdict[3] == "misread" and found.verdict[0] == "unreadable"
    assert (found.directions == 32).all() and found.attrs["candidates"] == len(candidates())


def test_an_overwritten_stream_is_erased_and_an_equal_one_kept():
    """Catches a refit that reads pre, and words that don't follow the numbers."""
    found = measured(blinded)
    score = found.score.mean("prompt").sel(depth=3)
    assert score.sel(probe="pre") > 0.8 and score.sel(probe="refit") < 0.65
    assert found.verdict[3] == "erased"
    found = measured(lambda m: m)
    last = found.sel(depth=3)
    np.testing.assert_array_equal(last["rank"].sel(probe="as_is"), last["rank"].sel(probe="pre"))
    assert abs(last.score.sel(probe="aligned") - last.score.sel(probe="pre")).max() < 1e-9
    assert last.verdict == "kept"
    assert found["rank"].dims == ("probe", "depth", "prompt")
    np.testing.assert_array_equal(found.cluster, encoded().cluster)


def test_neutral_text_is_enough_and_of_no_task():
    """Catches sentences lost, padding counted, the task's words among them."""
    text = neutral(tiny_tokenizer())
    assert len(SENTENCES) == len(set(SENTENCES)) == len(text.ids) >= 70
    for i in (0, 40, -1):
        said = tiny_tokenizer().decode(text.ids[i, : text.length[i]])
        assert said == SENTENCES[i]
    assert sum(len(s.split()) for s in SENTENCES) > 1000
    assert text.ids.shape[1] <= 128


def test_refusals():
    """Catches a crash in the middle, or a score without candidates."""
    _, _, inputs = toy.pair()
    with pytest.raises(MeasureError, match="no text to align"):
        readout(inputs)
    with_text = replace(inputs, neutral=neutral(tiny_tokenizer()))
    few = toy.encoded().subset(np.arange(3))
    with pytest.raises(MeasureError, match="3 distinct prompts and 3 different first tokens"):
        readout(with_text.with_encoded(few))


def test_a_prompt_with_two_answers_is_one_distinct_prompt():
    """Would catch: a probe that is read on a row that it was fitted on, under another cluster."""
    batch = toy.encoded().subset(np.array([0, 1, 2, 0]))
    assert lacks_for_probes(replace(batch, cluster=np.arange(4))).startswith("3 distinct prompts")
