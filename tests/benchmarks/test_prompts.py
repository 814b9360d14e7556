"""The prompts of the benchmarks, as mechforget encodes them and as plain sequences."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks import prompts
from benchmarks.prompts import Sequences
from mechforget.tasks import Task
from tests.tiny import tiny_tokenizer


def task(*rows):
    frame = pd.DataFrame(rows, columns=["prompt", "answer", "wrong"], dtype=object)
    return Task("task", frame, "test")


ROWS = [  # answers of several tokens, of one, none wrong
    ("The capital of France is", "Paris", "Rome"),
    ("The capital of Italy is", "Rome", "Paris"),
    ("The official language of Egypt is", "Arabic", "euro"),
    ("One dog, two", "dogs and many more of them", None),
]


def test_reads_and_scores_are_those_of_the_package():
    """Catches reads at other positions or of other tokens, and a sum over the wrong answer."""
    tokenizer = tiny_tokenizer()
    mine, encoded = Sequences.of(task(*ROWS), tokenizer), task(*ROWS).encode(tokenizer)
    rng, seen, values = np.random.default_rng(0), {}, []
    names = ("row", "position", "target")
    for e, prefix in ((mine, ""), (encoded, "read_")):  # a number for each beginning and target
        reads = zip(*(getattr(e, prefix + name) for name in names), strict=True)
        keys = [(*e.ids[row, : at + 1].tolist(), -1, int(target)) for row, at, target in reads]
        values.append(np.array([seen.setdefault(key, rng.normal()) for key in keys]))
    theirs = encoded.score(values[1], np.zeros(len(values[1]), bool))
    found = mine.metrics(values[0])
    np.testing.assert_allclose(found[0], theirs["log_prob"])
    np.testing.assert_allclose(found[1], theirs["logit_diff"])
    assert np.isnan(found[1, 3]) and np.isfinite(found[1, :3]).all()


def test_a_tree_counts_shared_beginnings_once():
    """Catches padding that counts, a beginning that counts for every prompt, and depths from 1."""
    nought = np.zeros(3, int)
    rows = Sequences(
        ids=np.array([[5, 6, 7], [5, 8, 0], [5, 6, 0]]),
        length=np.array([3, 2, 2]),
        row=np.arange(3),
        position=np.array([2, 1, 1]),
        target=nought,
        prompt=np.arange(3),
        wrong=nought.astype(bool),
        prompts=3,
    )
    tree = rows.tree()
    assert tree.depth.tolist() == [0, 1, 1, 2]  # 5, 5 6, 5 8, 5 6 7
    assert tree.read.tolist() == [1, 1, 2]
    assert [len(one.tree().depth) for one in rows.by_prompt()] == [3, 2, 2]
    again = replace(rows, ids=rows.ids + (rows.ids == 0) * 9)  # another padding
    assert again.tree().depth.tolist() == tree.depth.tolist()


def test_prompts_are_those_of_a_study():
    """Catches another draw than a study's with the same seed, which the aims speak of."""
    from mechforget.study.prompts import prompts as chosen
    from mechforget.study.settings import study

    settings = study(pre="a", post="b", task=prompts.TASK, prompts=16, few_shot=2)
    mine = prompts.task(16, 2, tiny_tokenizer()).rows["prompt"].tolist()
    assert mine == chosen(settings, prompts.TASK).rows["prompt"].tolist()


@pytest.mark.parametrize("words", [4, 9])
def test_random_prompts_share_nothing(words):
    """Catches two prompts with one first word, and another length than was asked for."""
    tokenizer = tiny_tokenizer()
    rows = prompts.unshared(6, words, tokenizer).rows
    lines = [line.split() for line in rows["prompt"]]
    assert {len(line) for line in lines} == {words}
    assert len({line[0] for line in lines}) == 6
