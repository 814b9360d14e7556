"""Hugging Face datasets: folders of both kinds, splits, class labels, and a hub out of reach."""

import logging
import os
import subprocess
import sys
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
    for source in (folder, str(folder) + "/"):
        task = tasks.load(source)
        assert task.rows["answer"].tolist() == ["Paris", "Rome"] and task.name == "capitals"
        assert task.rows["n"].tolist() == [1, 2]
    assert task.source == f"{folder}/"
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
    (folder / "train.csv").write_text("prompt,answer\na,x\n")
    assert "scripts are no longer supported" in refusal(folder)
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
    """Catches load_dataset's own retries, which sleep for 23 s in all and write a line each."""
    import huggingface_hub

    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"it waits {seconds} s"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    message = refusal("hub:nobody/capitals:test")
    assert message.startswith("hub:nobody/capitals: the Hugging Face Hub is out of reach (")
    assert "HF_HUB_OFFLINE=1" in message


def test_offline_and_never_downloaded(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "nobody/capitals: no dataset that can be read" in refusal("hub:nobody/capitals")


HUB = """
import json, os, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATA, COMMIT = b'{"prompt": "In France", "answer": "Paris"}', "a" * 40
FILE = {"type": "file", "path": "train.jsonl", "size": len(DATA), "oid": "b" * 40}
INFO = {"id": "me/capitals", "sha": COMMIT, "siblings": [{"rfilename": "train.jsonl"}]}

class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        code, body = 404, b"{}"
        if self.path.startswith("/api/datasets/me/capitals"):
            code, body = 200, json.dumps([FILE] if "/tree/" in self.path else INFO).encode()
        elif self.path.endswith("train.jsonl"):
            code, body = 200, DATA
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", "b" * 40)
        self.send_header("X-Repo-Commit", COMMIT)
        known = "capitals" in self.path
        self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"  # read when first imported

from mechforget import errors, tasks

for source in sys.argv[1:]:
    try:
        task = tasks.load(source)
        print(task.name, task.source, *task.rows.iloc[0], sep="|")
    except errors.TaskError as error:
        print(error)
"""


def test_a_dataset_from_a_hub(tmp_path):
    """The client's own road, against a hub on localhost; nothing on stderr."""
    sources = ["hub:me/capitals", "hub:me/capitals:train", "hub:me/capitals:dev", "hub:me/none"]
    done = subprocess.run(
        [sys.executable, "-c", HUB, *sources],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    one, split, no_split, none = done.stdout.splitlines()
    assert one == "capitals|hub:me/capitals|In France|Paris"
    assert split == "capitals|hub:me/capitals:train|In France|Paris"
    assert no_split == "hub:me/capitals:dev: no split 'dev' among train"
    assert none.startswith("hub:me/none: no dataset that can be read: ") and "404" in none
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["", "a/b/c", "../..", "no such/name"])
def test_a_name_that_is_none_is_one_line(name, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    refusal(f"hub:{name}")


def test_a_folder_without_data_is_not_walked_through(tmp_path, monkeypatch):
    # "" is the current folder to pathlib; load_dataset would read the user's whole home.
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "train.csv").write_text("prompt,answer\na,x\n")
    monkeypatch.chdir(tmp_path)
    assert "no .arrow, .csv, .json, .jsonl, .parquet file in this folder" in refusal(".")
    assert "no such task file or folder" in refusal("")


def test_logging_is_as_before(tmp_path):
    # Quiet inside, but never for the caller's own use of datasets afterwards.
    level, bars = logging.getLogger("datasets").level, datasets.are_progress_bars_disabled()
    refusal(tmp_path)
    assert logging.getLogger("datasets").level == level
    assert datasets.are_progress_bars_disabled() == bars
