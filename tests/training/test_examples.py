"""What a model is trained on: the tokens it is scored on, with the loss on the answer alone."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechforget.errors import TaskError
from mechforget.tasks import Task
from mechforget.training.examples import check_length, collate, dataset, digest, examples
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.conftest import task

TEXT = st.text("abc ÅP is", min_size=1, max_size=12).filter(str.strip)


def by_hand(tokenizer, prompt, answer):
    """(ids, labels) of one row, from the definition."""
    space = "" if prompt[-1].isspace() or answer[0].isspace() else " "
    start = tokenizer(prompt)["input_ids"]
    end = tokenizer(space + answer, add_special_tokens=False)["input_ids"]
    return start + end, [-100] * len(start) + end


def same(task, tokenizer):
    ids, labels = examples(task.encode(tokenizer))
    longest = ids.shape[1]
    for i, row in task.rows.iterrows():
        tokens, loss = by_hand(tokenizer, row["prompt"], row["answer"])
        pad = longest - len(tokens)
        np.testing.assert_array_equal(ids[i], tokens + [0] * pad)
        np.testing.assert_array_equal(labels[i], loss + [-100] * pad)
    assert ids.dtype == labels.dtype == np.int64


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", ["capital", "currency", "plural"])
def test_only_the_answer_carries_loss(name, bos):
    """Catches loss on the prompt, a label off by one, a lost last answer token, a missing BOS."""
    same(task(name), tiny_tokenizer(bos=bos))


def test_a_longer_wrong_answer_leaves_no_trace():
    """Right and wrong share a row when one continues the other. Catches training on the rest of
    the wrong one, and loss on it."""
    rows = {
        "prompt": ["The capital of Peru is", "One dog, two"],
        "answer": ["L", "dogs"],
        "wrong": ["Lima Lima Lima", "houses"],
    }
    tokenizer = tiny_tokenizer()
    shared = Task("shared", pd.DataFrame(rows), "x")
    encoded = shared.encode(tokenizer)
    assert encoded.n_rows < 4  # a row is shared
    same(shared, tokenizer)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_any_text(rows):
    """Catches a joint that differs from the scored one: whitespace, uneven lengths, repeats."""
    same(Task("any", pd.DataFrame(rows, columns=["prompt", "answer"]), "x"), tiny_tokenizer())


def test_a_batch_has_no_padding_that_all_share():
    """Catches a batch as wide as the task, one cut too short, and padding that changes the loss."""
    tokenizer, model = tiny_tokenizer(), tiny_model()
    rows = dataset(task("plural").encode(tokenizer))
    lengths = [len(by_hand(tokenizer, p, a)[0]) for p, a in task("plural").rows.values]
    short = int(np.argmin(lengths))
    assert lengths[short] < max(lengths)
    batch = collate([rows[short]])
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "input_ids": (1, lengths[short]),
        "labels": (1, lengths[short]),
    }
    padded = {name: value[None] for name, value in rows[short].items()}
    with torch.no_grad():
        assert float(model(**batch).loss) == pytest.approx(float(model(**padded).loss), rel=1e-6)


def test_too_long_for_the_model():
    """Catches a training that dies, or goes on, past the model's last position (128)."""
    tokenizer, config = tiny_tokenizer(), tiny_model().config
    more = len(by_hand(tokenizer, "!", "b")[0]) - 1  # "!" is one token, and never merged
    for length, fits in ((128, True), (129, False)):
        rows = pd.DataFrame({"prompt": ["!" * (length - more)], "answer": ["b"]})
        long = Task("long", rows, "long.csv")
        encoded = long.encode(tokenizer)
        assert (examples(encoded)[0] != 0).sum() == length
        if fits:
            check_length(long, encoded, config)
        else:
            with pytest.raises(TaskError, match=r"long.csv: .* 129 tokens .* takes 128: shorten"):
                check_length(long, encoded, config)


def test_the_digest_is_of_the_rows():
    """Catches a digest that misses a changed answer, or changes with the task's name."""
    one = task("plural")
    renamed = Task("other", one.rows, "elsewhere")
    changed = one.rows.copy()
    changed.loc[2, "answer"] = "kittens"
    assert digest(one) == digest(renamed) != digest(Task("plural", changed, one.source))
