"""Task files: what is in them arrives as text, and what is wrong is said in one line."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from mechforget import tasks
from mechforget.errors import TaskError


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path, **options):
    with pytest.raises(TaskError) as caught:
        tasks.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_the_three_formats_give_the_same_task(tmp_path):
    rows = [
        {"prompt": 'He said "yes, no"\nand', "answer": "1.50", "wrong": None, "note": "é"},
        {"prompt": "The capital of Italy is ", "answer": "Rome", "wrong": "Lima", "note": None},
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    csv = (
        'prompt,answer,wrong,note\r\n"He said ""yes, no""\nand",1.50,,é\r\n'
        "\r\nThe capital of Italy is ,Rome,Lima,\r\n"
    )
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for path in (
        write(tmp_path / "t.jsonl", lines + "\n\n"),
        write(tmp_path / "t.csv", csv),
        write(tmp_path / "u.CSV", b"\xef\xbb\xbf" + csv.encode()),  # as spreadsheets save it
        tmp_path / "t.parquet",
    ):
        task = tasks.load(path)
        assert task.rows["prompt"].tolist() == [row["prompt"] for row in rows]
        assert task.rows["answer"].tolist() == ["1.50", "Rome"]
        assert task.rows["wrong"].tolist() == [None, "Lima"]
        assert task.rows["note"][0] == "é" and not isinstance(task.rows["note"][1], str)
        assert (task.name, task.source) == (path.stem, str(path))


def test_numbers_are_their_text(tmp_path):
    # 007 would become 7, 1.50 become 1.5, NA become missing, 1e3 become 1000.0.
    csv = write(tmp_path / "t.csv", "prompt,answer\nagent,007\nprice,1.50\ncode,NA\nbig,1e3\n")
    assert tasks.load(csv).rows["answer"].tolist() == ["007", "1.50", "NA", "1e3"]
    lines = '{"prompt": 1, "answer": 1.50, "n": 2}\n{"prompt": 2, "answer": 1e3, "n": 3}\n'
    task = tasks.load(write(tmp_path / "t.jsonl", lines))
    assert task.rows["answer"].tolist() == ["1.50", "1e3"] and task.rows["prompt"][0] == "1"
    assert task.rows["n"].tolist() == [2, 3]  # another column keeps its numbers
    table = pa.table({"prompt": ["a", "b"], "answer": [1066, 7], "wrong": pa.array([8, None])})
    parquet.write_table(table, tmp_path / "t.parquet")
    task = tasks.load(tmp_path / "t.parquet")
    assert task.rows["answer"].tolist() == ["1066", "7"]
    assert task.rows["wrong"].tolist() == ["8", None]  # not 8.0, as a float column would say


def test_nan_cells_are_missing_ones(tmp_path):
    table = pa.table({"prompt": ["a"], "answer": ["x"], "wrong": pa.array([float("nan")])})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert tasks.load(tmp_path / "t.parquet").rows["wrong"].tolist() == [None]
    lines = write(tmp_path / "t.jsonl", '{"prompt": "a", "answer": "x", "wrong": NaN}')
    assert tasks.load(lines).rows["wrong"].tolist() == [None]


def test_hostile_text_stays_text(tmp_path):
    texts = ["nul\0", "</script>", "\u202eRTL", "a\u2028b\x0bc\x1cd", "🦀", "=1+1"]
    rows = [{"prompt": text, "answer": f"{text} x"} for text in texts]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    csv = "prompt,answer\n" + "".join(f"{text},{text} x\n" for text in texts)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for path in (
        write(tmp_path / "t.jsonl", lines),
        write(tmp_path / "t.csv", csv),
        tmp_path / "t.parquet",
    ):
        assert tasks.load(path).rows["prompt"].tolist() == texts
        assert tasks.load(path).rows["answer"].tolist() == [f"{text} x" for text in texts]


def test_line_ends_inside_a_quoted_cell_are_data(tmp_path):
    # Reading with universal newlines would change the prompt that the model sees.
    path = write(tmp_path / "t.csv", b'prompt,answer\r\n"a\r\nb\rc",x\r\n')
    assert tasks.load(path).rows["prompt"].tolist() == ["a\r\nb\rc"]


def test_a_lone_surrogate_is_one_line(tmp_path):
    lines = write(tmp_path / "t.jsonl", r'{"prompt": "a\ud800", "answer": "x", "more": "\udc00"}')
    assert "row 1: 'prompt' has a lone surrogate" in refusal(lines)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "", "no rows"),
        ("t.csv", "prompt,answer\n", "no rows"),
        ("t.csv", "prompt,answer\na,x\nb,y,z\n", "line 3 has 3 cells, the header 2"),
        ("t.csv", "prompt,answer\na,x\nb\n", "line 3 has 1 cells, the header 2"),
        ("t.csv", 'prompt,answer\na,x\n"b,y\n', "is no CSV: unexpected end of data"),
        ("t.csv", 'prompt,answer\na,"x"y\n', "line 2 is no CSV"),
        ("t.csv", "prompt,answer,answer\na,x,y\n", "column 'answer' appears twice"),
        ("t.csv", "question,reply\na,x\n", "no column 'prompt' among 'question', 'reply'"),
        ("t.csv", "prompt;answer\na;x\n", "no column 'prompt' among 'prompt;answer'"),
        ("t.csv", "prompt,answer\na,x\nb,\n", "row 2 has no answer"),
        ("t.csv", "prompt,answer\n,x\n", "row 1 has no prompt"),
        ("t.csv", "prompt,answer\nZürich,x\n".encode("latin-1"), "not UTF-8 at byte 15"),
        ("t.jsonl", "", "no rows"),
        ("t.jsonl", "\n\n", "no rows"),
        ("t.jsonl", '{"prompt": "a", "answer": "x"}\n\n{"prompt": "b"', "line 3 is not JSON"),
        ("t.jsonl", '["a", "x"]', "line 1 is a list: want an object a line"),
        ("t.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("t.jsonl", '{"prompt": "a"}', "no column 'answer' among 'prompt'"),
        ("t.jsonl", '{"prompt": "a", "answer": "x"}\n{"prompt": "b"}', "row 2 has no answer"),
        ("t.jsonl", '{"prompt": "a", "answer": ["x"]}', "row 1: 'answer' is a list"),
        ("t.jsonl", '{"prompt": "a", "answer": true}', "row 1: 'answer' is a bool"),
        ("t.jsonl", '{"prompt": "a", "answer": "x", "wrong": "x "}', "row 1 has 'x' as right and"),
        ("t.parquet", "PAR1 no", "no parquet file that can be read"),
        ("t.parquet", "", "no parquet file that can be read"),
        ("t.txt", "hello", "the name is not that of a task file: want .jsonl, .csv, .parquet"),
    ],
)
def test_each_broken_file_is_one_line(tmp_path, name, text, words):
    # Each of these came out as a traceback, a wrong row count or silence at first or elsewhere.
    assert words in refusal(write(tmp_path / name, text))


def test_a_parquet_file_cut_short_is_one_line(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"prompt": ["a"] * 99, "answer": ["b"] * 99}), path)
    write(path, path.read_bytes()[:-40])
    assert "no parquet file that can be read" in refusal(path)


def test_a_file_that_is_not_there(tmp_path):
    message = refusal(tmp_path / "none.csv")
    assert message.startswith("no such task file or folder: want a .jsonl, .csv")
    with pytest.raises(TaskError, match=r"^capital: .*there is builtin:capital"):
        tasks.load("capital")


def test_columns_can_be_named_and_all_stay(tmp_path):
    path = write(tmp_path / "t.csv", "q,a,prompt,hint\none,x,old,h\n")
    task = tasks.load(path, prompt="q", answer="a")
    row = task.rows.iloc[0].to_dict()
    assert row == {"q": "one", "a": "x", "prompt": "one", "hint": "h", "answer": "x"}
    assert "prompt='nope': no such column: there are 'q', 'a'" in refusal(path, prompt="nope")


def test_an_option_that_means_nothing_here_is_refused(tmp_path):
    # An argument that is taken and ignored makes another task than the user asked for.
    path = write(tmp_path / "t.csv", "prompt,answer\na,x\n")
    assert "template= does not apply" in refusal(path, template="{} is")


def test_few_shot_and_name_reach_the_task(tmp_path):
    path = write(tmp_path / "t.csv", "prompt,answer\na,x\nb,y\nc,z\n")
    task = tasks.load(path, name="letters", few_shot=2, seed=1)
    assert task.name == "letters" and len(task) == 1
    assert task.rows["prompt"][0].count("\n") == 2
    seeds = {tasks.load(path, few_shot=1, seed=seed).rows["few_shot"][0] for seed in range(9)}
    assert len(seeds) > 1
    empty = write(tmp_path / "u.csv", "")
    assert "no rows" in refusal(empty, prompt="q")
