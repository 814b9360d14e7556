"""The catalogue of measures: it is complete, light, and all that a new measure needs."""

import csv
import io
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
import xarray as xr

from mechforget.study import catalogue
from mechforget.tasks import load as load_task
from tests import runs
from tests.study import toy
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).parents[2]


def test_every_function_is_there_and_every_name_is_once():
    """Catches an entry whose function was renamed, and two tables of one name."""
    for entry in catalogue.ENTRIES:
        assert bool(entry.measure) != bool(entry.jobs), entry.name
        functions = [entry.measure, entry.jobs, entry.lacks, entry.notes]
        functions += [table.build for table in entry.exports()]
        for function in filter(None, functions):
            assert callable(catalogue.load(function)), function
        assert set(entry.needs) <= set(catalogue.names())
    every = [t.name for e in catalogue.ENTRIES for t in e.exports()]
    every += [t.name for t in catalogue.WHOLE_RUN]
    assert len(every) == len(set(every)) == len(catalogue.tables())
    assert len(set(catalogue.names())) == len(catalogue.ENTRIES)


def test_reading_the_catalogue_loads_no_measure():
    """Catches a catalogue that makes `--help` load torch."""
    code = "import sys; from mechforget.study import catalogue; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_the_readme_lists_what_the_catalogue_has():
    """Catches a measure, a default or a question that README and catalogue tell in two ways."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", (ROOT / "README.md").read_text(), re.M)
    found = {name: (question, tables) for name, question, tables in rows}
    for entry in catalogue.ENTRIES:
        tables = ", ".join(f"`{table.name}`" for table in entry.exports())
        asked = entry.question + ("" if entry.default else " (not by default)")
        assert found.get(entry.name) == (asked, tables), entry.name


def test_a_measure_is_one_file_and_one_entry(tmp_path, monkeypatch):
    """Catches a list of measures somewhere else: the toy is planned, run, cut off, resumed, exported
    in four formats, and shown in the report, and no file of the package knows of it."""
    entry = catalogue.Entry("toy", "how long are the prompts?", measure="tests.study.toy:toy")
    import_module("mechforget.cli")  # whose defaults are read when it is imported: without the toy
    monkeypatch.setattr(catalogue, "ENTRIES", (*catalogue.ENTRIES, entry))
    pre, post, run = runs.pre(), runs.post(), tmp_path / "run"
    study = tmp_path / "study.toml"
    settings = {"pre": str(pre), "post": str(post), "task": str(runs.task()), "memory": 1e-4}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    study.write_text("\n".join([*lines, 'measures = ["forgetting", "toy"]', f'out = "{run}"']))
    planned = runs.mechforget("plan", pre, "--study", study)
    assert planned.code == 0 and "toy" in planned.out, planned.err

    monkeypatch.setattr(toy, "stop_after", 2)
    cut = runs.mechforget("run", study)
    assert cut.code == 130, cut.err
    assert toy.made == len(list(run.glob("parts/*toy*/*.zarr"))) == 2
    monkeypatch.setattr(toy, "stop_after", -1)
    resumed = runs.mechforget("run", study)
    assert resumed.code == 0, resumed.err
    done = xr.open_zarr(run / "store.zarr", group="toy", consolidated=False)
    assert done.sizes["prompt"] == len(runs.PLACES) and toy.made > 2

    out = {form: tmp_path / f"toy.{form}" for form in ("csv", "json", "parquet", "netcdf")}
    for form, path in out.items():
        said = runs.mechforget("export", run, "toy", "--format", form, "--out", path)
        assert said.code == 0, said.err
    task = load_task(str(runs.task())).encode(tiny_tokenizer())
    want = float(task.length[task.first_rows].mean())
    (row,) = csv.DictReader(io.StringIO(out["csv"].read_text()))
    assert (row["quantity"], row["unit"]) == ("length", "tokens")
    assert float(row["value"]) == json.loads(out["json"].read_text())[0]["value"] == want
    assert pd.read_parquet(out["parquet"])["value"].item() == want
    assert xr.open_dataset(out["netcdf"], engine="h5netcdf")["value"].item() == want
    assert "How long are the prompts?" in (run / "report.html").read_text("utf-8")

    rooms = ("measures", "study", "planning", "views")
    files = [file for room in rooms for file in (ROOT / "mechforget" / room).rglob("*.py")]
    assert [file for file in files if re.search(r"\btoy\b", file.read_text())] == []
