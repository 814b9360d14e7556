"""The room as a whole: its table of contents, its import weight, its examples."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import mechforget.statistics

FILES = [m.name for m in pkgutil.iter_modules(mechforget.statistics.__path__)]


def test_every_public_name_is_there_once():
    """Catches a name in __all__ that does not exist, or a duplicate."""
    names = mechforget.statistics.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(mechforget.statistics, name) for name in names)


def test_import_is_light():
    """Catches scipy.stats (1 s) or anything heavier pulled in by the import."""
    code = "import sys, mechforget.statistics; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "numpy" in loaded  # the list is real
    assert not loaded & {"scipy", "pandas", "xarray", "torch", "transformers"}


@pytest.mark.parametrize("name", FILES)
def test_examples(name):
    """Catches a docstring whose example no longer holds."""
    module = importlib.import_module(f"mechforget.statistics.{name}")
    assert doctest.testmod(module).failed == 0
