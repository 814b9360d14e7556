"""Gradient interference: against full gradients, finite differences, and synthetic gradients."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from mechforget.errors import MeasureError
from mechforget.measures import Inputs
from mechforget.measures.interference import dealt, interference
from mechforget.statistics.minibatches import NEW, OLD, quantities, summary
from mechforget.tasks.task import Task
from tests.measures import toy
from tests.tiny import tiny_tokenizer


def other_task():
    rows = [
        {"prompt": f"The currency of {country} is", "answer": word, "subject": country}
        for country, word in zip(
            list(toy.CAPITALS), "yen euro yen dog euro dogs go yen euro go".split(), strict=True
        )
    ]
    return Task("other", pd.DataFrame(rows), "other").encode(tiny_tokenizer())


def gradient(model, batch):
    """name -> gradient of the mean loss over prompts, by plain autograd."""
    model = copy.deepcopy(model).requires_grad_(True)
    right = torch.as_tensor(~batch.read_wrong)
    logits = model(torch.as_tensor(batch.ids), use_cache=False).logits
    read = logits[batch.read_row, batch.read_position].log_softmax(-1)
    score = read[range(len(right)), batch.read_target][right].sum() / batch.n_prompts
    names = [n for n, _ in model.named_parameters()]
    made = torch.autograd.grad(-score, list(model.parameters()))
    return dict(zip(names, made, strict=True)), float(-score)


def test_against_full_gradients_and_a_step():
    """Would catch: a product of the wrong matrices or rows, a mean over the wrong prompts, and a
    sign: under a step of the new task the old loss must move by -η times the product."""
    hf_pre, hf_post, inputs = toy.pair()
    new = other_task()
    found = interference(inputs, new=new, at=(0.0, 1.0), minibatches=4)
    for at, hf in ((0, hf_pre), (1, hf_post)):
        (a, before), (b, _) = gradient(hf, toy.encoded()), gradient(hf, new)
        old, fresh = (np.flatnonzero(found.task.values == t) for t in (OLD, NEW))
        # minibatches of unlike size: weighed, their means give the task's mean
        size = [np.bincount(dealt(e.cluster, 4, 0)) for e in (toy.encoded(), new)]
        gram = found.gram.values[at]
        dot = np.einsum(
            "i,cij,j->c",
            size[0] / size[0].sum(),
            gram[:, old[:, None], fresh],
            size[1] / size[1].sum(),
        )
        part = found.part.values
        total = sum(float((a[n] * b[n]).sum()) for n in a)
        assert dot.sum() == pytest.approx(total, rel=1e-3)
        for matrix, name in (("W_Q", "q_proj"), ("W_O", "o_proj")):
            for layer in range(3):
                for head in range(4):
                    full = f"model.layers.{layer}.self_attn.{name}.weight"
                    cut = slice(8 * head, 8 * head + 8)
                    pair = [g[full][cut] if matrix == "W_Q" else g[full][:, cut] for g in (a, b)]
                    where = (part == matrix) & (found.layer.values == layer)
                    where &= found.unit.values == head
                    want = float((pair[0] * pair[1]).sum())
                    assert dot[where].sum() == pytest.approx(want, rel=1e-3, abs=1e-5)
        step, moved = 1e-5, copy.deepcopy(hf)
        with torch.no_grad():
            for n, p in moved.named_parameters():
                p.sub_(step * b[n])
        moved = moved.double()
        after, before = gradient(moved, toy.encoded())[1], gradient(hf.double(), toy.encoded())[1]
        hf.float()
        assert (after - before) / step == pytest.approx(-total, rel=0.05)


def synthetic(relation, noise=1.0, m=8, d=400, seed=0):
    """Gram of minibatch gradients: a mean of unit length each, at a known cosine, and noise."""
    rng = np.random.default_rng(seed)
    a, b = np.linalg.qr(rng.standard_normal((d, 2)))[0].T
    b = relation * a + np.sqrt(1 - relation**2) * b
    rows = [mean + noise * rng.standard_normal(d) / np.sqrt(d) for mean in [a] * m + [b] * m]
    rows = np.stack(rows)
    return rows @ rows.T, np.array([OLD] * m + [NEW] * m)


@pytest.mark.parametrize("relation", [-0.8, 0.0, 0.5, 1.0])
def test_the_corrected_cosine_sees_through_noise(relation):
    """Would catch: a cosine that noise of minibatches pulls to zero, and an interval that doesn't
    hold the truth."""
    hits = 0
    for seed in range(20):
        gram, task = synthetic(relation, noise=3.0, d=4000, seed=seed)
        found = summary(gram, task, draws=200, seed=seed)
        hits += found["corrected"][1] - 0.02 <= relation <= found["corrected"][2] + 0.02
        if abs(relation) == 0.8:
            assert abs(found["cosine"][0]) < 0.6 < abs(found["corrected"][0])
    assert hits >= 15


def test_opposed_unrelated_and_equal_gradients():
    """Would catch: a conflict rate of the wrong sign, and a reference that isn't 0.5 and 0."""
    gram, task = synthetic(-1.0, noise=0.1)
    found = summary(gram, task, draws=200)
    assert found["conflict"][0] == 1 and found["cosine"][0] < -0.9 and found["p"][0] < 0.05
    assert found["null_conflict"][0] == pytest.approx(0.5, abs=0.05)
    assert found["null_cosine"][0] == pytest.approx(0, abs=0.1)
    gram, task = synthetic(1.0, noise=0.1)
    assert summary(gram, task, draws=50)["conflict"][0] == 0
    assert summary(gram, task, draws=50)["reliability"][0] == 1
    ps = [summary(*synthetic(0.0, seed=s), draws=100)["p"][0] for s in range(20)]
    assert 0.2 < np.mean(ps) < 0.8


def test_a_minibatch_is_not_compared_with_itself():
    """Would catch: a resample's duplicates that make a task look more like itself than it is."""
    gram, task = synthetic(0.0, noise=5.0)
    old, new = (np.flatnonzero(task == t) for t in (OLD, NEW))
    twice = np.array([0, 0, 1, 1])
    got = quantities(gram, twice, new)
    once = quantities(gram, np.array([0, 1]), new)
    assert got["corrected"] == pytest.approx(once["corrected"], nan_ok=True)
    assert np.isnan(quantities(np.zeros((16, 16)), old, new)["conflict"])


def test_clusters_stay_together_and_few_are_refused():
    """Would catch: prompts of one subject in two minibatches, which then look alike."""
    cluster = np.array([5, 5, 1, 2, 3, 3, 9, 8])
    group = dealt(cluster, 4, 0)
    for c in np.unique(cluster):
        assert len(set(group[cluster == c])) == 1
    assert set(group) == {0, 1, 2, 3}
    _, _, inputs = toy.pair()
    with pytest.raises(MeasureError, match="old task has 3 distinct prompts"):
        interference(
            Inputs(inputs.pre, inputs.post, toy.encoded().subset(np.arange(3))), new=other_task()
        )
