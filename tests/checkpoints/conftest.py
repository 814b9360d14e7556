"""Tiny checkpoints on disk, shared by the room's tests. Treat them as read-only: `copy` first."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny, tiny_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """No test reads or writes the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MECHFORGET_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[..., Path]:
    """tiny(family, seed): that checkpoint's folder, saved once."""
    made: dict[tuple[str, int], Path] = {}

    def get(family: str = "llama", seed: int = 0) -> Path:
        if (family, seed) not in made:
            folder = tmp_path_factory.mktemp(f"{family}{seed}")
            made[family, seed] = save_tiny(folder, family, seed)
        return made[family, seed]

    return get


@pytest.fixture
def copy(tmp_path) -> Callable[[Path], Path]:
    """A copy of a folder that the test may break."""

    def get(folder: Path) -> Path:
        target = tmp_path / f"copy-of-{folder.name}"
        shutil.copytree(folder, target)
        return target

    return get


@pytest.fixture(scope="session")
def adapter(tmp_path_factory, tiny) -> Path:
    """LoRA of rank 4 on the tiny llama's q and v, with random (not zero) matrices."""
    torch.manual_seed(0)
    model = tiny_model("llama", 0)
    model.config.name_or_path = model.name_or_path = str(tiny())
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)  # type: ignore[arg-type]
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(folder)
    return folder


def edit_json(file: Path, **fields: Any) -> None:
    """Sets fields; None removes one."""
    value = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
