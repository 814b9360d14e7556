"""Each command imports only the heavy packages that it needs. No time is measured: in a process of its
own the command is run, and what it has imported is compared with a short list."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests import runs

ROOT = Path(__file__).parents[1]
HEAVY = {  # what takes more than a tenth of a second to import
    *("torch", "transformers", "transformers.trainer", "transformer_lens", "nnsight", "peft"),
    *("datasets", "pandas", "xarray", "zarr", "scipy.stats", "rich.table", "numpy"),
}
TABLES = {"numpy", "pandas", "xarray", "zarr", "scipy.stats"}
MODEL = {"numpy", "torch", "transformers"}
BACKENDS = {"transformer_lens": {"transformer_lens", "datasets"}, "nnsight": {"nnsight"}}

COMMANDS = """
import contextlib, io, json, sys
from mechforget.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["mechforget", *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
    print(json.dumps(sorted(sys.modules)))
"""


def imported(code: str, *words: object) -> list[set[str]]:
    """The heavy packages after each line of modules that this code prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0 and "mechforget: " not in done.stderr, done.stderr
    return [HEAVY.intersection(json.loads(line)) for line in done.stdout.splitlines()]


def commands(*lines: tuple[object, ...]) -> list[set[str]]:
    """The heavy packages after each of these commands, which one process runs one after the other."""
    return imported(COMMANDS, json.dumps([[str(word) for word in line] for line in lines]))


def test_help_and_import_stay_light():
    """Catches a heavy import on the way to --help; the last line shows that it could."""
    assert commands(("--help",), ("compare", "--help"), ("plan", "--help")) == [set()] * 3
    rooms = "import mechforget, mechforget.cli, mechforget.tasks, mechforget.checkpoints;"
    said = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    assert imported("import mechforget;" + said) == [set()]
    assert imported(rooms + said) == [{"numpy"}]
    assert imported("import numpy, pandas;" + said) == [{"numpy", "pandas"}]


def test_a_run_is_read_without_torch():
    """Catches a table, a report or a verdict that needs a model's packages: seconds for each look."""
    run, _ = runs.compared()
    again = ("compare", runs.pre(), runs.post(), "--task", runs.task(), "--out", run)
    again += ("--new-task", runs.new_task(), "--graft-top", 3)
    lines = [("export", run, name) for name in ("forgetting", "patching", "ledger", "claims")]
    *tables, shown = commands(*lines, ("report", run), again, ("show", run))
    assert all(found <= TABLES for found in tables)
    assert shown <= TABLES | {"rich.table"}
    [found] = imported(
        "import json, sys, mechforget as mf; run = mf.open_run(sys.argv[1]);"
        "run.verdict, run.table('patching'); print(json.dumps(sorted(sys.modules)))",
        run,
    )
    assert found <= TABLES


def test_weights_are_compared_without_torch():
    """Catches a diff that builds a model."""
    [found] = commands(("diff", runs.pre(), runs.post()))
    assert found <= {"numpy", "pandas", "rich.table"}


def test_doctor_looks_for_devices_only():
    """Catches an import of every package whose version is printed."""
    assert commands(("doctor",)) == [{"numpy", "torch"}]


def test_a_study_imports_its_own_backend_only(tmp_path):
    """Catches the other backend's packages, peft without an adapter, and transformers' trainer."""
    words = ("compare", runs.pre(), runs.post(), "--task", runs.task(), "--measures", "forgetting")
    for backend, own in BACKENDS.items():
        [found] = commands((*words, "--backend", backend, "--out", tmp_path / backend))
        assert found <= TABLES | MODEL | own, backend


def test_a_plan_and_a_planted_copy_need_no_tables(tmp_path):
    """Catches TransformerLens, pandas and xarray where one model is looked at."""
    [found] = commands(("plan", runs.pre()))
    assert found <= MODEL | {"nnsight", "rich.table"}
    [found] = commands(("plant", runs.pre(), tmp_path / "planted", "--scramble", "L1H1"))
    assert found <= MODEL | {"nnsight"}


def test_training_needs_no_backend(tmp_path):
    """Catches a backend where models are only trained and scored. The trainer itself imports peft
    and datasets."""
    file = tmp_path / "sequence.toml"
    part = f'[{{source = "{runs.task()}", steps = 1, learning_rate = 1e-4}}]'
    file.write_text(f'base = "{runs.pre()}"\nout = "{tmp_path / "out"}"\ntasks = {part}\n')
    [found] = commands(("train", file))
    trainer = {"transformers.trainer", "peft", "datasets", "scipy.stats"}
    assert found <= MODEL | trainer | {"pandas", "xarray"}
