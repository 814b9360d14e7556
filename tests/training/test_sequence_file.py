"""SEQUENCE.toml: every wrong one is refused in one line that names the key."""

import pytest

from mechforget.errors import StudyError
from mechforget.training import Settings
from mechforget.training.sequence_file import read

GOOD = """
base = "theta0"
out = "runs/seq"

[[old]]
source = "old.csv"
answer = "A"

[[tasks]]
source = "new.csv"
steps = 30
learning_rate = 1e-4
"""
WRONG = [
    ('base = "theta0"', "", "base is missing"),
    ("steps = 30", "", "tasks[1].steps is missing"),
    ("out =", "outt =", "outt: no such key: there are base, out, tasks, old, method, seed"),
    ("steps =", "step =", "tasks[1].step: no such key"),
    ("learning_rate", "lr", "tasks[1].lr: no such key: there are source, name"),
    ("learning_rate = 1e-4", "", "tasks[1].learning_rate is missing"),
    ('answer = "A"', "steps = 3", "old[1].steps: no such key: there are source, name, few_shot"),
    ("out =", 'method = "lroa"\nout =', "method = 'lroa': input should be 'full' or 'lora'"),
    ("out =", "seed = true\nout =", "seed = True: input should be a valid integer"),
    ("steps = 30", 'steps = "30"', "tasks[1].steps = '30': input should be a valid integer"),
    ("1e-4", "1e-4\nbatch_size = 2.5", "tasks[1].batch_size = 2.5: input should be a valid int"),
    ("steps = 30", "steps = 0", "task 1 (new.csv): steps = 0: want at least 1"),
    ("1e-4", "-1", "task 1 (new.csv): learning_rate = -1"),
    ("out =", "rank = 4\nout =", "task 1 (new.csv): rank is for method = 'lora'"),
    ("[[tasks]]", "[tasks]", "tasks = {'source': 'new.csv'"),
    ("out =", "out ", "is not TOML"),
]


def refusal(folder, text):
    file = folder / "SEQUENCE.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StudyError) as error:
        read(file)
    assert str(error.value).startswith(f"{file}") and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("old", "new", "words"), WRONG, ids=[words for _, _, words in WRONG])
def test_refusals(tmp_path, old, new, words):
    """Catches a key that is ignored, a default for what must be said, "30" taken for 30."""
    assert old in GOOD
    assert words in refusal(tmp_path, GOOD.replace(old, new, 1))


def test_files_that_are_none(tmp_path):
    """Catches a traceback for what is not there, a folder, bytes, or a sequence of no tasks."""
    assert "not TOML" in refusal(tmp_path, b"\xff\xfe")
    assert "tasks = []: list should have at least 1" in refusal(
        tmp_path, 'base = "a"\nout = "b"\ntasks = []'
    )
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(StudyError, match="want a sequence's TOML file"):
            read(path)


def test_what_is_said_is_what_is_done(tmp_path):
    """Catches a key that does not reach the training."""
    file = tmp_path / "SEQUENCE.toml"
    top = 'method = "lora"\nrank = 4\nalpha = 5\ntargets = ["q_proj"]\nseed = 7\nout ='
    file.write_text(GOOD.replace("out =", top) + "batch_size = 3\nwarmup_steps = 2\n")
    said = read(file)
    assert said.settings(said.tasks[0]) == Settings(
        steps=30,
        learning_rate=1e-4,
        method="lora",
        batch_size=3,
        warmup_steps=2,
        seed=7,
        rank=4,
        alpha=5,
        targets=("q_proj",),
    )
    file.write_text(GOOD)
    said = read(file)
    assert said.settings(said.tasks[0]) == Settings(steps=30, learning_rate=1e-4)


def test_a_task_is_loaded_as_said(tmp_path):
    """Catches a key that does not reach `tasks.load`."""
    rows = tmp_path / "rows.csv"
    rows.write_text("q,a\nOne,1\nTwo,2\nThree,3\n")
    file = tmp_path / "SEQUENCE.toml"
    keys = f'source = "{rows}"\nname = "sums"\nprompt = "q"\nanswer = "a"\nfew_shot = 1\n'
    head = 'base = "a"\nout = "b"\n'
    file.write_text(f"{head}[[tasks]]\n{keys}steps = 1\nlearning_rate = 1.0\n[[old]]\n{keys}")
    said = read(file)
    for part in (said.tasks[0], said.old[0]):
        task = part.load()
        assert task.name == "sums" and len(task) == 2 and "\n" in task.rows["prompt"][0]
    relation = GOOD.replace("new.csv", "builtin:capital").replace("1e-4", '1e-4\ntemplate = "{}:"')
    file.write_text(relation)
    assert read(file).tasks[0].load().rows["prompt"][0].endswith(":")
