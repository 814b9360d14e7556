"""Hugging Face datasets: folders of both kinds, splits, class labels, and a hub out of reach."""

import logging
import time

import pytest

from mechforget import tasks
from mechforget.errors import TaskError

datasets = pytest.importorskip("datasets")
ROWS = {"prompt": ["In France", "In Italy"], "answer": ["Paris", "Rome"], "n": [1, 2]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def refusal(source, **options):
    with pytest.raises(TaskError) as caught:
        tasks.load(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_saved_dataset(tmp_path, capfd):
    folder = tmp_path / "capitals"
    datasets.Dataset.from_dict(ROWS).save_to_disk(folder)
    capfd.readouterr()
    for source in (folder, str(folder) + "/", f"hub:{folder}"):
        task = tasks.load(source)
        assert task.rows["answer"].tolist() == ["Paris", "Rome"] and task.name == "capitals"
        assert task.rows["n"].tolist() == [1, 2]
    assert task.source == f"hub:{folder}"
    assert capfd.readouterr().err == ""  # no bars where nobody watches


def test_a_split_is_named_where_there_are_several(tmp_path):
    part = datasets.Dataset.from_dict(ROWS)
    folder = tmp_path / "a:b"  # a colon of its own
    datasets.DatasetDict(train=part, test=part.select([1])).save_to_disk(folder)
    assert tasks.load(f"{folder}:test").rows["answer"].tolist() == ["Rome"]
    assert "which of its splits: train, test?" in refusal(folder)
    assert "no split 'dev' among train, test" in refusal(f"{folder}:dev")


def test_a_folder_of_data_files(tmp_path, capfd):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"q": "a", "a": "x"}\n{"q": "b", "a": "y"}\n')
    task = tasks.load(folder, prompt="q", answer="a")
    assert task.rows["answer"].tolist() == ["x", "y"] and task.rows["prompt"].tolist() == ["a", "b"]
    assert capfd.readouterr().err == ""


def test_class_labels_become_their_names(tmp_path):
    # As numbers, "1" would be scored as the answer.
    features = datasets.Features(
        prompt=datasets.Value("string"), answer=datasets.ClassLabel(names=["no", "yes"])
    )
    made = datasets.Dataset.from_dict({"prompt": ["a", "b"], "answer": [1, 0]}, features=features)
    made.save_to_disk(tmp_path / "d")
    assert tasks.load(tmp_path / "d").rows["answer"].tolist() == ["yes", "no"]


def test_images_are_left_out(tmp_path):
    # Decoding them needs packages that a text task does not.
    features = datasets.Features(
        prompt=datasets.Value("string"), answer=datasets.Value("string"), look=datasets.Image()
    )
    made = datasets.Dataset.from_dict(
        {"prompt": ["a"], "answer": ["x"], "look": [None]}, features=features
    )
    made.save_to_disk(tmp_path / "d")
    assert list(tasks.load(tmp_path / "d").rows) == ["prompt", "answer"]


def test_code_in_a_dataset_is_not_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    marker = tmp_path / "ran"
    (folder / "scripted.py").write_text(f"open({str(marker)!r}, 'w')\n")
    assert "scripted" in refusal(folder)
    (folder / "train.csv").write_text("prompt,answer\na,x\n")
    try:
        tasks.load(folder)
    except TaskError as error:
        assert "\n" not in str(error)
    assert not marker.exists()


@pytest.mark.parametrize("bad", ["", "{", '{"prompt": "a"}'])
def test_a_folder_that_is_no_dataset_is_one_line(tmp_path, bad):
    folder = tmp_path / "d"
    folder.mkdir()
    if bad:
        (folder / "train.jsonl").write_text(bad)
    message = refusal(folder)
    assert message.startswith(f"{folder}: no ")


def test_an_unreachable_hub_is_one_line_and_quick(monkeypatch):
    # load_dataset alone retries for 23 s and writes a line on stderr each time.
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    message = refusal("hub:nobody/capitals:test")
    assert message.startswith("hub:nobody/capitals: the Hugging Face Hub is out of reach (")
    assert "HF_HUB_OFFLINE=1" in message and time.monotonic() - start < 10


def test_offline_and_never_downloaded(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "nobody/capitals: no dataset that can be read" in refusal("hub:nobody/capitals")


@pytest.mark.parametrize("name", ["", "a/b/c", "../..", "no such/name"])
def test_a_name_that_is_none_is_one_line(name, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    refusal(f"hub:{name}")


def test_logging_is_as_before(tmp_path):
    # Quiet inside, but never for the caller's own use of datasets afterwards.
    level, bars = logging.getLogger("datasets").level, datasets.are_progress_bars_disabled()
    refusal(f"hub:{tmp_path}")
    assert logging.getLogger("datasets").level == level
    assert datasets.are_progress_bars_disabled() == bars
