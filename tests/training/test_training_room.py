"""The room's door: its public names, and how little they weigh."""

import subprocess
import sys

from mechforget import training

HEAVY = ("torch", "transformers", "accelerate", "peft", "pandas", "xarray")


def loaded(statement):
    code = f"import sys; {statement}; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_table_of_contents():
    """Catches a public name that is gone, or hidden by the file of the same name."""
    assert training.__all__ == "Damage Settings finetune plant planted score train".split()
    assert all(callable(getattr(training, name)) for name in training.__all__)


def test_importing_is_light_and_this_test_can_fail():
    """Catches `mechforget --help` taking seconds."""
    assert loaded("import mechforget.training as t; t.train, t.finetune, t.plant") == []
    assert "pandas" in loaded("import mechforget.training, pandas")
