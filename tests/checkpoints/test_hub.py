"""Hub names, with the real client against a server on localhost, and against none.

Each question is asked by a process of its own: the client reads its environment when imported.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mechforget.checkpoints.hub import NAME
from tests.checkpoints.hub_server import commit, serve
from tests.tiny import save_tiny

ASK = """
import json, os, socket, sys, time
from mechforget import checkpoints
from mechforget.checkpoints import hub
from mechforget.errors import CheckpointError
hub.SECONDS = 60  # a busy machine may take its time
if limit := os.environ.get("NO_LONGER_THAN"):
    hub.SECONDS = float(limit)
    settimeout = socket.socket.settimeout
    def patient(self, seconds):
        if seconds is None or seconds > hub.SECONDS:
            sys.exit(f"it would wait {seconds} s for an answer")
        settimeout(self, seconds)
    socket.socket.settimeout = patient
    time.sleep = lambda seconds: sys.exit(f"it would try again in {seconds} s")
said = []
for ref in sys.argv[1:]:
    try:
        one = checkpoints.open(ref, weights="SMALL" not in os.environ)
        said.append([one.kind, str(one.path), one.ref, one.digest()])
    except CheckpointError as error:
        said.append(["refused", str(error)])
print(json.dumps(said))
"""


@pytest.fixture
def ask(tmp_path, own_cache):
    """ask(address, *refs, **environment): what opening each says."""

    def get(address: str, *refs: str, **environment: str) -> list[list[str]]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        env |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")} | environment
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1"}  # it has seconds of patience of its own
        done = subprocess.run(
            [sys.executable, "-c", ASK, *refs], env=env, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return json.loads(done.stdout)

    return get


@pytest.fixture(scope="module")
def nobody() -> Iterator[str]:
    """An address where nothing listens; it stays bound, so that nobody else can have it."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{one.getsockname()[1]}"


def test_download_then_cache(ask, tiny, copy, nobody):
    """Would catch pickles and second formats that are downloaded, a wrong revision, a network that
    is asked for what is cached, and a copy that is not the model. Oracle: the served folder."""
    main, other = copy(tiny()), copy(tiny(seed=1))
    for extra in ("pytorch_model.bin", "consolidated.safetensors", "optimizer.pt"):
        (main / extra).write_bytes(b"not wanted")
    (main / "onnx").mkdir()
    (main / "onnx" / "config.json").write_text("{}")
    with serve({"org/name": {"main": main, "v1": other}}) as hub:
        first, second, third = ask(
            hub.address, "org/name", "org/name@v1", f"org/name@{commit(other)}"
        )
        asked = len(hub.asked)
        assert ask(hub.address, "org/name", "org/name@v1") == [first, second]
        assert len(hub.asked) == asked
    assert first[0] == "hub" and first[2] == "org/name"
    wanted = {f.name for f in tiny().iterdir()}
    assert {f.name for f in Path(first[1]).iterdir()} == wanted
    for name in wanted:
        assert (Path(first[1]) / name).read_bytes() == (main / name).read_bytes()
    assert first[3] != second[3] == third[3]
    assert Path(second[1]) == Path(third[1])
    offline = ask(nobody, "org/name", "org/name@v1", HF_HUB_OFFLINE="1")
    assert offline == [first, second]


def test_a_servers_client_fetches_small_files_only(ask, tiny, adapter, copy, nobody):
    """Would catch gigabytes downloaded for a model that runs elsewhere, a tokenizer or an adapter's
    own matrices left out, and small files that are later taken for the whole model."""
    folder = copy(adapter)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": "org/name", "revision": None}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").unlink(missing_ok=True)
    refs = ("org/name", "org/adapter")
    with serve({"org/name": {"main": tiny()}, "org/adapter": {"main": folder}}) as hub:
        small, worn = ask(hub.address, *refs, SMALL="1")
        assert not any("/model.safetensors" in path for path in hub.asked)
        assert any("/adapter_model.safetensors" in path for path in hub.asked)
        assert ask(nobody, *refs, SMALL="1") == [small, worn], "cached"
        names = {f.name for f in Path(small[1]).iterdir()}
        assert names == {f.name for f in tiny().iterdir()} - {"model.safetensors"}
        assert "not in the hub's cache" in ask(nobody, "org/name")[0][1]
        whole, merged = ask(hub.address, *refs)
    assert (Path(whole[1]) / "model.safetensors").is_file()
    assert small[:3] == whole[:3] and worn[:3] == merged[:3]


def test_what_the_hub_does_not_have(ask, tiny):
    """Would catch a traceback, or words that do not say which of the two was wrong."""
    with serve({"org/name": {"main": tiny()}}) as hub:
        model, revision = ask(hub.address, "org/other", "org/name@v9")
    assert model[1].startswith("org/other: no such file or folder, and no such model on the hub")
    assert revision[1] == "org/name has no revision 'v9' on the hub"


def test_a_hub_model_without_safetensors(ask, copy, tiny):
    """Would catch a pickle that is fetched and read."""
    folder = copy(tiny())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with serve({"org/pickled": {"main": folder}}) as hub:
        [[kind, said]] = ask(hub.address, "org/pickled")
        assert kind == "refused" and "no safetensors weights" in said
        assert not any("pytorch_model.bin" in path for path in hub.asked)


def test_an_adapter_whose_base_is_on_the_hub(ask, adapter, copy, tiny):
    """Would catch a base that is looked for beside the adapter only."""
    folder = copy(adapter)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": "org/base", "revision": "v1"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with serve({"org/base": {"v1": tiny()}, "org/adapter": {"main": folder}}) as hub:
        local, remote = ask(hub.address, str(folder), "org/adapter")
    assert local[0] == remote[0] == "adapter" and local[3] == remote[3]


def test_part_of_a_model_in_the_cache_is_completed(ask, tiny, tmp_path, nobody):
    """Would catch a cache that holds one file of a model, as tokenizer-only tools leave it, and is
    taken for the model."""
    snapshot = tmp_path / "hf/hub/models--org--name/snapshots" / commit(tiny())
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((tiny() / "config.json").read_bytes())
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit(tiny()))
    assert "not in the hub's cache" in ask(nobody, "org/name")[0][1]
    with serve({"org/name": {"main": tiny()}}) as hub:
        assert ask(hub.address, "org/name")[0][0] == "hub"


def test_without_a_network(ask, nobody):
    """Would catch minutes of retries, more than one line, or a way out that is not said: with
    nothing listening, with a server that never answers, and offline by wish."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hole = f"http://127.0.0.1:{silent.getsockname()[1]}"
        limit = {"NO_LONGER_THAN": "0.5"}
        answers = [*ask(nobody, "org/name", "name", **limit), *ask(hole, "org/name", **limit)]
    for _, said in answers:
        assert "no such file or folder, not in the hub's cache, and http://127" in said
        assert "cannot be reached" in said and said.endswith("connect and try again")
        assert "\n" not in said
    [[_, said]] = ask(nobody, "org/name", HF_HUB_OFFLINE="1")
    assert "with HF_HUB_OFFLINE set: unset it, or give a path" in said


def test_a_folder_wins_over_the_hub(ask, tmp_path, tiny):
    """Would catch a download of what lies in the current folder."""
    save_tiny(tmp_path / "org" / "name")
    with serve({"org/name": {"main": tiny()}}) as hub:
        [[kind, *_]] = ask(hub.address, str(tmp_path / "org" / "name"))
        assert kind == "folder" and hub.asked == []


@pytest.mark.parametrize(
    ("ref", "parts"),
    [
        ("org/name", ("org/name", None)),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", ("HuggingFaceTB/SmolLM2-135M-Instruct", None)),
        ("gpt2", ("gpt2", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        ("/abs/path", None),
        ("./rel/path", None),
        ("../up", None),
        ("a/b/c", None),
        ("org/name@", None),
        ("org/na me", None),
        ("~/x", None),
    ],
)
def test_what_is_a_hub_name(ref, parts):
    """Would catch a path that is asked of the hub, or a revision that is lost."""
    match = NAME.fullmatch(ref)
    assert (match and (match["repo"], match["revision"])) == parts
