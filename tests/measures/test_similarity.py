"""Task similarity against plain Hugging Face, closed forms and brute force."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from mechforget.errors import MeasureError
from mechforget.measures.similarity import (
    against_forgetting,
    fisher_overlap,
    gradient_cosine,
    mean_cosine,
    paired,
    similarity,
)
from mechforget.tasks.task import Task
from tests.measures import toy
from tests.measures.test_drift import activations, cka
from tests.tiny import tiny_tokenizer


def currency():
    names = ["Japan", "Peru", "Cuba", "Norway", "Italy", "Chile", "Kenya"]
    rows = [{"prompt": f"The currency of {n} is the", "answer": "yen", "subject": n} for n in names]
    return Task("currency", pd.DataFrame(rows), "currency")


def test_equals_plain_hugging_face():
    """Catches post taken for pre, pairs out of step, padding in a mean, another layer's stream."""
    hf_pre, _, inputs = toy.pair()
    other = currency()
    pairs = paired(toy.task(), other)
    subjects = [toy.task().rows["subject"][a] for a, _ in pairs]
    assert subjects == [other.rows["subject"][b] for _, b in pairs] and len(pairs) == 6
    found = similarity(inputs, other=other.encode(tiny_tokenizer()), pairs=pairs)
    texts = [t.rows["prompt"].tolist() for t in (toy.task(), other)]
    ids = [[torch.tensor([tiny_tokenizer()(p)["input_ids"]]) for p in ps] for ps in texts]
    with torch.no_grad():
        hidden = [[hf_pre(i, output_hidden_states=True).hidden_states for i in s] for s in ids]
    last = [np.stack([h[2][0, -1].double().numpy() for h in side]) for side in hidden]
    want = cka(last[0][pairs[:, 0]], last[1][pairs[:, 1]], np.arange(6))
    np.testing.assert_allclose(found.cka.sel(depth=2, bound="value"), want, atol=1e-4)
    assert found.subjects == 6 and np.isnan(found.cka.sel(bound="low")).all()
    mean = [np.mean([h[0][0].double().numpy().mean(0) for h in side], 0) for side in hidden]
    want = mean[0] @ mean[1] / np.linalg.norm(mean[0]) / np.linalg.norm(mean[1])
    np.testing.assert_allclose(found.cosine.sel(of="embedding", bound="value"), want, atol=1e-5)
    a = activations(hf_pre, 2, "resid_post").mean(0)
    same = similarity(inputs, other=toy.encoded())
    np.testing.assert_allclose(same.cosine.sel(bound="value"), 1)
    assert np.isnan(same.cka).all() and "cannot be told" in same.attrs["caveat"] and a.any()


def test_mean_cosine():
    """Catches means of cluster means, and one task's clusters left as they are."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 5)) + 1, rng.normal(size=(24, 5)) + np.array([3, 0, 0, 0, 0])
    found = mean_cosine(x, y, np.arange(20) // 2, np.r_[0, 0, 0, 0, np.arange(20)] // 2)
    a, b = x.mean(0), y.mean(0)
    np.testing.assert_allclose(found[0], a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found[1] < found[0] < found[2] <= 1


def grams(a, b):
    return a @ a.T, a @ b.T, b @ b.T


def test_gradients_by_loops_and_without_each_cluster():
    """Catches the diagonal left in, clusters as prompts, a closed form that isn't the recount."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(11, 4)) + 1, rng.normal(size=(9, 4)) + np.array([2, 1, 0, 0])
    ca, cb = np.r_[0, 0, 0, np.arange(1, 9)], np.arange(9)

    def by_loops(a, b, ca, cb, power):
        def mean(x, y, cx, cy, same):
            each = [
                np.mean([[(u @ v) ** power for v in y[cy == j]] for u in x[cx == i]])
                for i in np.unique(cx)
                for j in np.unique(cy)
                if not (same and i == j)
            ]
            return np.mean(each)

        top = mean(a, b, ca, cb, False)
        return top / np.sqrt(mean(a, a, ca, ca, True) * mean(b, b, cb, cb, True))

    for fn, power in ((gradient_cosine, 1), (fisher_overlap, 2)):
        found = fn(*grams(a, b), ca, cb)
        np.testing.assert_allclose(found.estimate, by_loops(a, b, ca, cb, power))
        without_a = [by_loops(a[ca != c], b, ca[ca != c], cb, power) for c in range(9)]
        without_b = [by_loops(a, b[cb != c], ca, cb[cb != c], power) for c in range(9)]
        se = np.sqrt(sum(8 / 9 * np.var(w) * 9 for w in (without_a, without_b)))
        np.testing.assert_allclose(found.high - found.low, 2 * 2.306004135 * se)


def test_gradients_of_known_covariance():
    """Catches noise that shrinks the cosine: true gradients at 60 degrees under noise ten times
    their size, and a Fisher overlap in closed form, of F = diag(4, 1) and diag(1, 4)."""
    rng = np.random.default_rng(2)
    n, d = 1500, 30
    true = np.zeros((2, d))
    true[0, 0], true[1, :2] = 1, (0.5, 0.75**0.5)
    a, b = (t + 10 / np.sqrt(d) * rng.normal(size=(n, d)) for t in true)
    found = gradient_cosine(*grams(a, b), np.arange(n), np.arange(n))
    assert found.low < 0.5 < found.high and found.high - found.low < 0.5
    assert abs((a @ b.T).mean() / np.sqrt((a**2).sum(1).mean() * (b**2).sum(1).mean())) < 0.02
    a, b = rng.normal(size=(2, 600, 2)) * np.array([[[2, 1]], [[1, 2]]])
    found = fisher_overlap(*grams(a, b), np.arange(600), np.arange(600))
    assert found.low < 8 / 17 < found.high and found.high - found.low < 0.2
    opposed = fisher_overlap(*grams(a, -a), np.arange(600), np.arange(600))
    assert opposed.estimate == pytest.approx(1, abs=0.02)


def test_against_forgetting():
    """Catches dims transposed on one side, tasks in another order, a correlation of 5 tasks."""
    rng = np.random.default_rng(3)
    names = list("abcdefg")
    dims = dict(dims=("task", "other"), coords={"task": names, "other": names})
    similar = xr.DataArray(rng.normal(size=(7, 7)), **dims)
    forgotten = similar + 0.3 * rng.normal(size=(7, 7))
    found = against_forgetting(similar, forgotten.transpose())
    assert found.r.sel(correlation="pearson", bound="value") > 0.8 and (found.p < 0.01).all()
    few = against_forgetting(similar[:5, :5], forgotten[:5, :5])
    assert np.isnan(few.r).all() and "5 tasks, 6 are needed: cannot be told" in few.attrs["caveat"]
    with pytest.raises(MeasureError, match="not of the same tasks in the same order"):
        against_forgetting(similar, forgotten[::-1])
    with pytest.raises(MeasureError, match="want task and other"):
        against_forgetting(similar.rename(other="b"), forgotten)
