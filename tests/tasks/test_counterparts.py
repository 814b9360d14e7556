"""Clean/corrupt prompts: aligned, really about another subject, never half-swapped."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechforget.errors import TaskError
from mechforget.tasks import Task
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer(bos=True)
SUBJECTS = ["France", "Italy", "Japan", "Niger", "Nigeria", "Peru", "Zürich", "Q"]
TEMPLATES = ["The capital of {} is", "{}, oh {}: its capital is", "In {} people"]


def make(rows, **columns):
    frame = pd.DataFrame(rows, columns=["prompt", "answer", "subject"], dtype=object)
    more = {name: pd.Series(cells, dtype=object) for name, cells in columns.items()}
    return Task("t", frame.assign(**more), "t.csv")


def count(text):
    return len(TOKENIZER(text).input_ids)


@st.composite
def tasks(draw):
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        subject = draw(st.sampled_from(SUBJECTS))
        template = draw(st.sampled_from(TEMPLATES))
        rows.append((template.format(*[subject] * 2), draw(st.sampled_from("xyz")), subject))
    return make(rows)


@settings(max_examples=80, deadline=None)
@given(tasks())
def test_the_first_next_row_that_fits_is_the_counterpart(task):
    """All by hand: which partner, which text, which answer, and None only where nothing fits."""
    made = task.counterparts(TOKENIZER)
    rows = task.rows
    for i in range(len(task)):
        fitting = []
        for step in range(1, len(task)):
            j = (i + step) % len(task)
            mine, other = rows["subject"][i], rows["subject"][j]
            template = next(t for t in TEMPLATES if t.format(mine, mine) == rows["prompt"][i])
            text = template.format(other, other)
            if (
                other != mine
                and rows["answer"][j] != rows["answer"][i]
                and len(TOKENIZER(" " + mine).input_ids) == len(TOKENIZER(" " + other).input_ids)
                and count(text) == count(rows["prompt"][i])
            ):
                fitting.append((text, rows["answer"][j]))
        want = fitting[0] if fitting else (None, None)
        assert (made.rows["corrupted"][i], made.rows["wrong"][i]) == want
    assert made.rows["prompt"].tolist() == rows["prompt"].tolist()
    lack = made.rows["corrupted"].tolist().count(None)
    assert made.notes[-1].startswith(f"{lack} of {len(task)} prompts have no" if lack else "every")


def test_an_answer_of_equal_length_goes_first():
    # Else the difference of log-probabilities compares one token with three.
    assert [len(TOKENIZER(f" {w}").input_ids) - 1 for w in ("Paris", "Rome", "Italy")] == [1, 2, 1]
    rows = [
        ("In France", "Paris", "France"),
        ("In Italy", "Rome", "Italy"),
        ("In Japan", "Italy", "Japan"),
    ]
    made = make(rows).counterparts(TOKENIZER)
    assert made.rows["corrupted"][0] == "In Japan" and made.rows["wrong"][0] == "Italy"
    assert make(rows[:2]).counterparts(TOKENIZER).rows["wrong"].tolist() == ["Rome", "Paris"]


def test_a_given_wrong_answer_stays():
    rows = [("In France", "Paris", "France"), ("In Italy", "Rome", "Italy")]
    made = make(rows, wrong=["Lima", None]).counterparts(TOKENIZER)
    assert made.rows["wrong"].tolist() == ["Lima", "Paris"]


def test_a_given_counterpart_stays_if_it_is_aligned():
    rows = [("In France", "a", None), ("In Italy", "b", None), ("In Japan", "c", None)]
    given = ["In Japan", "In Italy and more", None]
    made = make(rows, corrupted=given).counterparts(TOKENIZER)
    assert made.rows["corrupted"].tolist() == ["In Japan", None, None]
    assert "2 of 3 prompts" in made.notes[-1]


def test_few_shot_examples_are_not_swapped():
    # The scored subject can stand inside an example's text; only the question may change.
    rows = [
        ("In France", "a", "France"),
        ("In Italy", "b", "Italy"),
        ("Not in Italy nor France: In Japan", "c", "Japan"),
    ]
    task = next(
        t
        for t in (make(rows).few_shot(1, seed) for seed in range(50))
        if "nor" in t.rows["prompt"][0]
    )
    made = task.counterparts(TOKENIZER)
    start = "Not in Italy nor France: In Japan c\n"
    assert made.rows["corrupted"].tolist() == [start + "In Italy", start + "In France"]


def test_a_subject_inside_a_longer_word_is_not_the_subject():
    # Swapping the Niger in Nigeria gives "Peruia". Here both ends, with letters of a token each;
    # nor may an unchanged prompt pass as its own counterpart.
    rows = [("In qi", "a", "q"), ("In iz", "b", "z")]
    assert make(rows).counterparts(TOKENIZER).rows["corrupted"].tolist() == [None, None]


def test_scripts_without_spaces_are_swapped():
    # 法国 is followed by a letter; a rule for Latin word ends alone would find nothing.
    rows = [("法国的首都是", "巴黎", "法国"), ("德国的首都是", "柏林", "德国")]
    made = make(rows).counterparts(TOKENIZER)
    assert made.rows["corrupted"].tolist() == ["德国的首都是", "法国的首都是"]


@pytest.mark.parametrize("subject", [r"a.*\1", "\\g<0>", "(x"])
def test_a_subject_is_text_and_no_pattern(subject):
    other = subject[::-1].replace(" ", "_")
    rows = [(f"In {subject} now", "a", subject), (f"In {other} now", "b", other)]
    made = make(rows).counterparts(TOKENIZER)
    for text, want in zip(made.rows["corrupted"], (other, subject), strict=True):
        assert text in (None, f"In {want} now")


def test_without_subject_and_counterpart_it_is_refused():
    task = Task("t", pd.DataFrame({"prompt": ["a"], "answer": ["b"]}), "t.csv")
    with pytest.raises(TaskError, match=r"^t.csv: no column 'subject' to swap and no 'corrupted'"):
        task.counterparts(TOKENIZER)
