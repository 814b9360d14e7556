"""What a server that lacks a library says, and that it can still import what is sent to it."""

import subprocess
import sys

import pytest
from torch import nn

from mechforget.errors import ModelError
from mechforget.models import beside

IMPORTS = """
import importlib, pathlib, sys
sys.modules["einops"] = None  # importing it fails, as where it isn't installed
import mechforget
from mechforget.models.beside import ROOMS
root = pathlib.Path(mechforget.__file__).parent
for room in ROOMS:
    for file in sorted((root / room).glob("*.py")):
        importlib.import_module(f"mechforget.{room}.{file.stem}")
"""


def test_every_module_that_is_sent_imports_without_einops():
    """Catches an import at the top of a module that a server without einops would fail on."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_server_without_einops_says_so_before_the_first_forward(monkeypatch):
    """Catches a ModuleNotFoundError in the middle of a sweep."""
    monkeypatch.setattr(beside, "find_spec", lambda name: None)

    class Envoy:
        _module = nn.Linear(2, 2)  # nothing in it can be run or proven

    with pytest.raises(ModelError, match=r"the server has no einops: install it there \(pip"):
        beside.model(Envoy(), None)
