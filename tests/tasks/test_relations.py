"""Relation files in the format of the LRE data set, as published: with double-escaped letters."""

import json

import pytest

from mechforget import tasks
from mechforget.errors import TaskError

# Written out as the published files are: a backslash, a u, and digits, inside valid JSON.
PUBLISHED = r"""{
    "name": "town on river",
    "prompt_templates": ["The river in {} is called the", "{} lies on the "],
    "prompt_templates_zs": ["Which river flows through {}?"],
    "properties": {"relation_type": "factual", "symmetric": false},
    "samples": [
        {"subject": "Bras\\u00edlia", "object": "Parano\\u00e1"},
        {"subject": "Krak\u00f3w", "object": "Vistula"},
        {"subject": "Crab \\ud83e\\udd80", "object": "New River"}
    ]
}"""


def write(folder, text):
    path = folder / "town_on_river.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


def test_one_row_per_template_and_sample_with_real_letters(tmp_path):
    task = tasks.load(write(tmp_path, PUBLISHED))
    rows = task.rows
    assert task.name == "town on river" and len(rows) == 6
    assert rows["prompt"].tolist() == [
        "The river in Brasília is called the",
        "The river in Kraków is called the",
        "The river in Crab 🦀 is called the",
        "Brasília lies on the ",
        "Kraków lies on the ",
        "Crab 🦀 lies on the ",
    ]
    assert rows["answer"].tolist() == ["Paranoá", "Vistula", "New River"] * 2
    assert rows["subject"].tolist() == ["Brasília", "Kraków", "Crab 🦀"] * 2
    assert rows["template"].tolist()[::3] == ["The river in {} is called the", "{} lies on the "]
    assert task.clusters.tolist() == [0, 1, 2] * 2  # templates of one subject are one cluster


def test_a_template_of_ones_own(tmp_path):
    path = write(tmp_path, PUBLISHED)
    task = tasks.load(path, template="{}'s {{}} river: {}")
    assert task.rows["prompt"][1] == "Kraków's {Kraków} river: Kraków" and len(task) == 3
    assert len(tasks.load(path, template="all")) == 6
    with pytest.raises(TaskError, match=r"template 1 is 'no place': want a text with \{\}"):
        tasks.load(path, template="no place")


def test_text_that_only_looks_like_an_escape_stays(tmp_path):
    data = {
        "prompt_templates": ["{}:"],
        "samples": [{"subject": r"\users \u12 \\n", "object": r"C:\uu"}],
    }
    task = tasks.load(write(tmp_path, data))
    assert task.rows["answer"][0] == r"C:\uu" and task.rows["subject"][0] == r"\users \u12 \\n"
    assert task.name == "town_on_river"  # no name inside: the file's


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"samples": [\n}', "line 2 is not JSON"),
        ("", "line 1 is not JSON"),
        ("[" * 100_000, "its JSON can't be read"),
        ({"rows": []}, "no list 'samples'"),
        ([1], "no list 'samples'"),
        ({"samples": [], "prompt_templates": ["{}"]}, "'samples' is empty"),
        ({"samples": [{"subject": "a", "object": "b"}]}, "no list 'prompt_templates'"),
        (
            {"samples": [{"subject": "a", "object": "b"}], "prompt_templates": ["{} is", "bare"]},
            "template 2 is 'bare': want a text with {}",
        ),
        (
            {"samples": [{"subject": "a", "object": "b"}, {"subject": "c"}]},
            "sample 2: want 'subject' and 'object'",
        ),
        ({"samples": [{"subject": "a", "object": ["b"]}]}, "sample 1: want"),
        ({"samples": ["a"]}, "sample 1: want"),
        ({"samples": [{"subject": "", "object": "b"}]}, "sample 1: want"),
        ({"samples": [{"subject": "a", "object": ""}]}, "sample 1: want"),
        (
            {"samples": [{"subject": r"\ud800", "object": "b"}], "prompt_templates": ["{} is"]},
            "row 1: 'prompt' has a lone surrogate",
        ),
    ],
)
def test_each_broken_file_is_one_line(tmp_path, data, words):
    path = write(tmp_path, data)
    with pytest.raises(TaskError) as caught:
        tasks.load(path)
    message = str(caught.value)
    assert words in message and message.startswith(f"{path}: ") and "\n" not in message


def test_column_names_mean_nothing_here(tmp_path):
    with pytest.raises(TaskError, match="answer= does not apply"):
        tasks.load(write(tmp_path, PUBLISHED), answer="object")
