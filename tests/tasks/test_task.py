"""The task itself: what is refused, what is a cluster, what few-shot examples and selection do."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechforget.errors import TaskError
from mechforget.tasks import Task


def task(*rows, **columns):
    frame = pd.DataFrame(rows, columns=["prompt", "answer"], dtype=object)
    more = {name: pd.Series(cells, dtype=object) for name, cells in columns.items()}
    return Task("t", frame.assign(**more), "t.csv")


CAPITALS = [(f"The capital of {c} is", a) for c, a in [("Italy", "Rome"), ("Peru", "Lima")]]


def refusal(make):
    with pytest.raises(TaskError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message and message.startswith("t.csv: ")
    return message


def test_missing_cells_are_none_and_numbers_their_text():
    # pandas turns None into NaN, which would be scored as the word "nan"; 1066 into 1066.0.
    made = task(
        ("a", 1066),
        ("b", "Rome"),
        wrong=[None, float("nan")],
        subject=[pd.NA, np.int64(7)],
        other=[1.5, None],
    )
    assert made.rows["answer"].tolist() == ["1066", "Rome"]
    assert made.rows["wrong"].tolist() == [None, None]
    assert made.rows["subject"].tolist() == [None, "7"]
    assert made.rows["other"].iloc[0] == 1.5  # no column of ours: as it was


def test_an_empty_wrong_answer_or_counterpart_is_none():
    # Else the empty text is scored as an answer without tokens.
    made = task(("a", "x"), wrong=[""], corrupted=[""])
    assert made.rows["wrong"][0] is None and made.rows["corrupted"][0] is None


def test_the_callers_frame_stays_and_rows_count_from_zero():
    frame = pd.DataFrame({"prompt": ["a", "b"], "answer": [1, 2]}, index=[5, 9])
    made = Task("t", frame, "t.csv")
    assert frame["answer"].tolist() == [1, 2] and frame.index.tolist() == [5, 9]
    assert made.rows.index.tolist() == [0, 1] and len(made) == 2


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ([], {}, "no rows"),
        ([("a", None)], {}, "row 1 has no answer"),
        ([("a", "x"), ("a", "")], {}, "row 2 has no answer"),
        ([(None, "x")], {}, "row 1 has no prompt"),
        ([("a", ["x"])], {}, "row 1: 'answer' is a list: want text"),
        ([("a", True)], {}, "row 1: 'answer' is a bool: want text"),
        ([("a", "x")], {"wrong": [" x"]}, "row 1 has 'x' as right and as wrong answer"),
        ([("a\ud800", "x")], {}, "row 1: 'prompt' has a lone surrogate"),
        ([("a", "x")], {"other": ["\udfff"]}, "row 1: 'other' has a lone surrogate"),
    ],
)
def test_each_bad_cell_is_one_line_that_names_its_row(rows, columns, words):
    # Without these the fault surfaces deep inside a tokenizer, or as a score of nothing.
    assert words in refusal(lambda: task(*rows, **columns))


def test_a_missing_column_is_told_with_what_there_is():
    frame = pd.DataFrame({"question": ["a"], "reply": ["x"]})
    message = refusal(lambda: Task("t", frame, "t.csv"))
    assert "no column 'prompt' among 'question', 'reply'" in message and "prompt=" in message


def test_a_column_twice_is_refused():
    frame = pd.DataFrame([["a", "x", "y"]], columns=["prompt", "answer", "answer"])
    assert "'answer' appears twice" in refusal(lambda: Task("t", frame, "t.csv"))


@pytest.mark.parametrize("text", ["nul\0", "</script>", "\u202eright to left", "a\u2028b", "🦀"])
def test_hostile_text_stays_text(text):
    made = task((text, text + "!"))
    assert made.rows["prompt"].tolist() == [text] and made.rows["answer"].tolist() == [text + "!"]


def test_a_hostile_answer_cannot_write_a_second_line_or_a_terminal_code():
    message = refusal(lambda: task(("a", "x\n\x1b[31m"), wrong=["x\n\x1b[31m"]))
    assert "\x1b" not in message


def test_clusters_are_subjects_and_else_identical_rows():
    # One row of a pair without subject, or a subject that spells like a pair, must not merge.
    made = task(
        ("a", "x"),
        ("b", "x"),
        ("a", "x"),
        ("a", "y"),
        ("c", "z"),
        subject=["s", "s", None, None, "t"],
    )
    assert made.clusters.tolist() == [0, 0, 1, 2, 3]
    assert made.clusters.dtype == np.int64
    assert task(("a", "x"), ("a", "x"), ("a", "y")).clusters.tolist() == [0, 0, 1]


def test_few_shot_examples_lead_every_prompt_and_leave_the_rows():
    made = task(*CAPITALS, ("Spain? ", "Madrid"), corrupted=["c1", None, "c3"]).few_shot(1, seed=3)
    assert len(made) == 2 and made.rows["prompt"].nunique() == 2
    (shown,) = set(made.rows["few_shot"])
    lines = {"The capital of Italy is Rome\n", "The capital of Peru is Lima\n", "Spain? Madrid\n"}
    assert shown in lines  # the space rule holds here too: not "Spain?  Madrid"
    assert all(prompt.startswith(shown) for prompt in made.rows["prompt"])
    for clean, corrupted in zip(made.rows["prompt"], made.rows["corrupted"], strict=True):
        assert corrupted is None or corrupted.startswith(shown), clean
    assert any("1 examples (seed 3)" in note and "1 rows" in note for note in made.notes)


@given(st.integers(0, 5), st.integers(0, 1000))
def test_no_scored_answer_of_an_example_stays(k, seed):
    # With two templates the example's subject has another row, which would be scored with its
    # answer in view.
    rows = [(f"{t} {i}", f"answer{i}") for t in ("one", "two") for i in range(6)]
    full = task(*rows, subject=[str(i) for _ in range(2) for i in range(6)])
    made = full.few_shot(k, seed)
    assert len(made) == 12 - 2 * k
    shown = made.rows["few_shot"].iloc[0] if k else ""
    assert shown.count("\n") == k
    for prompt, answer in zip(made.rows["prompt"], made.rows["answer"], strict=True):
        assert prompt.startswith(shown) and answer not in prompt
    again = full.few_shot(k, seed)
    assert again.rows["prompt"].tolist() == made.rows["prompt"].tolist()


def test_other_seeds_show_other_examples():
    # A seed that is taken and ignored.
    rows = [(f"p{i}", f"a{i}") for i in range(20)]
    assert len({task(*rows).few_shot(1, seed).rows["few_shot"].iloc[0] for seed in range(8)}) > 2


@pytest.mark.parametrize("k", [-1, 2, 9])
def test_too_many_examples_are_refused(k):
    assert f"few_shot={k} of 2 different subjects" in refusal(lambda: task(*CAPITALS).few_shot(k))


def test_select_keeps_what_it_is_told_and_says_why():
    made = task(("a", "x"), ("b", "y"), ("c", "z"))
    kept = made.select(np.array([True, False, True]), "pre knows 2 of 3")
    assert kept.rows["prompt"].tolist() == ["a", "c"] and kept.rows.index.tolist() == [0, 1]
    assert kept.notes == ("pre knows 2 of 3",) and len(made) == 3
    assert made.select(np.array([2, 0]), "n").rows["prompt"].tolist() == ["c", "a"]
    twice = kept.select(np.array([0]), "first only")
    assert twice.notes == ("pre knows 2 of 3", "first only")
    message = refusal(lambda: made.select(np.zeros(3, dtype=bool), "pre knows 0 of 3"))
    assert "no prompt is left (pre knows 0 of 3)" in message
