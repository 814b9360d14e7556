"""The room's door: its public names, and how little they weigh."""

import subprocess
import sys

from mechforget import tasks

HEAVY = ("pandas", "torch", "transformers", "datasets", "pyarrow", "countryinfo", "lemminflect")


def loaded(statement):
    code = f"import sys; {statement}; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_table_of_contents():
    assert tasks.__all__ == ["BUILTIN", "Encoded", "Task", "load"]
    assert callable(tasks.load) and "capital" in tasks.BUILTIN
    assert tasks.Task.__name__ == "Task" and tasks.Encoded.__name__ == "Encoded"


def test_importing_is_light_and_this_test_can_fail():
    # `mechforget --help` answers in under a second only while this holds.
    assert loaded("import mechforget.tasks as t; t.BUILTIN, t.Encoded, t.load, t.Task") == []
    assert "lemminflect" in loaded("import mechforget.tasks as t; t.load('builtin:plural')")
