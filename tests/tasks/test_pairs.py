"""Clean/corrupted pairs in CSV, under the column names that people publish."""

import pytest

from mechforget import tasks
from mechforget.errors import TaskError


def load(folder, text, **options):
    path = folder / "ioi.csv"
    path.write_text(text, encoding="utf-8")
    return tasks.load(path, **options)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("answer", "wrong"),
        ("answer", "wrong_answer"),
        ("correct_answer", "incorrect_answer"),
        ("clean_answer", "corrupted_answer"),
        ("answer", "corrupted_answer"),
        ("answer_token", "wrong_answer_token"),
        ("correct", "incorrect"),
        ("Clean_Answer", "Corrupt_Answer"),
    ],
)
def test_published_names_give_the_same_task(tmp_path, right, wrong):
    text = f"clean,corrupted,{right},{wrong},kind\nIn France,In Italy, Paris, Rome,7\n"
    task = load(tmp_path, text)
    row = task.rows.iloc[0]
    assert (row.prompt, row.corrupted) == ("In France", "In Italy")
    assert (row.answer, row.wrong, row.kind) == (" Paris", " Rome", "7")


def test_a_wrong_answer_may_be_missing_and_corrupt_be_spelled_short(tmp_path):
    task = load(tmp_path, "clean,corrupt,label\na,b,x\n")
    assert "wrong" not in task.rows and task.rows["corrupted"].tolist() == ["b"]


def test_a_named_answer_column_goes_first(tmp_path):
    text = "clean,corrupted,answer,target\na,b,x,y\n"
    assert load(tmp_path, text, answer="target").rows["answer"].tolist() == ["y"]
    assert load(tmp_path, text).rows["answer"].tolist() == ["x"]
    with pytest.raises(TaskError, match="no column with the clean prompt's answer"):
        load(tmp_path, text, answer="nope")


def test_another_prompt_column_makes_it_a_table_of_rows(tmp_path):
    task = load(tmp_path, "clean,corrupted,question,answer\na,b,c,x\n", prompt="question")
    assert task.rows["prompt"].tolist() == ["c"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clean,answer\na,x\n", "'clean' without 'corrupted' among 'clean', 'answer'"),
        ("clean,corrupted\na,b\n", "no column with the clean prompt's answer"),
        ("clean,corrupted,correct_idx,incorrect_idx\na,b,3,4\n", "'correct_idx' holds token ids"),
        ("clean,corrupted,answer\na,b,\n", "row 1 has no answer"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, text, words):
    # Token ids of another model, read as text, would be scored as numbers.
    with pytest.raises(TaskError) as caught:
        load(tmp_path, text)
    assert words in str(caught.value) and "\n" not in str(caught.value)
