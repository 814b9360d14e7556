"""Scores against one prompt at a time, with the whole logits, by hand."""

import numpy as np
import pandas as pd
import pytest
import torch

from mechforget.tasks import Task
from mechforget.training import score
from mechforget.training.score import _chunks, _read
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer
from tests.training.conftest import answer_log_probs, task


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_the_right_positions(family):
    """Catches a family that ignores or misreads `logits_to_keep`, padding that is seen, packed rows
    that see each other, and reads out of order: prompts of several lengths that begin alike,
    answers of several tokens."""
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    rows = pd.concat([task(name).rows for name in ("capital", "plural")])
    both = Task("both", rows, "x")
    encoded = both.encode(tokenizer)
    assert len(set(encoded.length)) > 2 and encoded.n_answer.max() > 1
    found = {"log_prob": np.full(len(both), np.nan), "correct": np.full(len(both), np.nan)}
    rows = 0
    for prompts, part in _chunks(model, encoded, lambda n: None):
        scores = part.score(*_read(model, part))
        rows += len(part.fed)
        for name in found:
            found[name][prompts] = scores[name]
    assert rows < encoded.n_rows  # some are packed
    for i, row in both.rows.iterrows():
        log_p, right = answer_log_probs(model, tokenizer, row["prompt"], row["answer"])
        # float32 logits of order 10, over some positions: 1e-6 relative
        assert found["log_prob"][i] == pytest.approx(sum(log_p), abs=1e-4)
        assert found["correct"][i] == right


def test_tasks_in_the_order_given(base):
    """Catches swapped tasks, a batch border that drops or repeats a prompt (more than 16), a wrong
    label, and a correct answer that is not seen as such."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt, word = _one_that_it_knows(model, tokenizer)
    prompts = [prompt] + [f"The capital of France {i} is" for i in range(40)]
    rows = pd.DataFrame({"prompt": prompts, "answer": [word] + ["Paris"] * 40})
    long = Task("long", rows, "x")
    found = score(base, [long, task("plural")])
    assert [one.attrs["task"] for one in found] == ["long", "plural"]
    assert [one.sizes["prompt"] for one in found] == [41, 3]
    assert found[0]["correct"].values[0] == 1
    for one, part in zip(found, (long, task("plural")), strict=True):
        by_hand = [answer_log_probs(model, tokenizer, p, a) for p, a in part.rows.values]
        np.testing.assert_allclose(one["log_prob"], [sum(x) for x, _ in by_hand], atol=1e-4)
        np.testing.assert_array_equal(one["correct"], [right for _, right in by_hand])
        np.testing.assert_array_equal(one["cluster"], part.clusters)


def _one_that_it_knows(model, tokenizer):
    """A prompt, and the model's own next word: one token that starts with a space."""
    for i in range(1000):
        ids = tokenizer(f"One {i}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            token = int(model(ids).logits[0, -1].argmax())
        text = tokenizer.decode([token])
        again = tokenizer(text, add_special_tokens=False)["input_ids"]
        if text[0] == " " and text.strip() and again == [token]:
            return f"One {i}", text.strip()
    raise AssertionError("no prompt found")
