"""Writes a run's tables to files; CSV and JSON also to standard output."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mechforget.errors import StudyError
from mechforget.study import catalogue
from mechforget.study.store import Store
from mechforget.study.tables.generic import generic

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def export(store: Store, measure: str, form: str, out: Path | None) -> None:
    """Writes one of a run's tables.

    Raises: StudyError: the run does not have this table, or as `check`.
    """
    check(form, out)
    write(table(store, measure), form, out)


def table(store: Store, name: str) -> "pd.DataFrame":
    """One table of a run. For a sequence of checkpoints, the tables of all of them, with a column
    `checkpoint`.

    Raises: StudyError: the run does not have this table.
    """
    import pandas as pd

    if store.checkpoints > 1 and not store.prefix:
        steps = range(1, store.checkpoints + 1)
        each = [_table(store.at(t), name).assign(checkpoint=t) for t in steps]
        whole = pd.concat(each, ignore_index=True)
        return whole.reindex(columns=["checkpoint", *whole.columns.drop("checkpoint")])
    return _table(store, name)


def available(store: Store) -> list[str]:
    """The names of the tables that this run has."""
    return [name for name, known in catalogue.tables().items() if _is_there(store, known)]


def _table(store: Store, name: str) -> "pd.DataFrame":
    known = catalogue.tables()
    if name not in known:
        raise StudyError(f"table {name!r} is unknown; want one of {', '.join(known)}")
    if not _is_there(store, known[name]):
        have = ", ".join(available(store)) or "nothing yet"
        raise StudyError(f"{store.path} has no {name}: add it to the measures; it has: {have}")
    if known[name].build:
        return catalogue.load(known[name].build)(store)
    return generic(store, name)


def _is_there(store: Store, known: catalogue.Table) -> bool:
    of = known.of or known.name
    return any(done == of or done.startswith(f"{of}/") for done in store.finished)


def check(form: str, out: Path | None) -> None:
    """Raises: StudyError: a binary format without a file, or no place for the file."""
    if out is None and form in ("parquet", "netcdf"):
        raise StudyError(f"{form} is binary: give --out FILE")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise StudyError(f"--out {out}: want a file in a folder that exists")


def write(frame: "pd.DataFrame", form: str, out: Path | None) -> None:
    """Only the data, in full precision; true and false in lower case; missing values empty.

    form: csv, json, parquet or netcdf.
    """
    if form == "parquet":
        frame.to_parquet(out, index=False)
        return
    if form == "netcdf":
        _netcdf(frame).to_netcdf(out)
        return
    if form == "json":
        # pandas' own writer rounds to 15 decimals, which leaves little of a small p.
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        # JSON has no infinity either: a relative change of what was zero.
        ends = (float("inf"), -float("inf"))
        rows = [{k: None if v in ends else v for k, v in row.items()} for row in rows]
        text = json.dumps(rows, ensure_ascii=False, allow_nan=False) + "\n"
    else:
        flags = frame.select_dtypes("bool").columns
        shown = frame.assign(**{c: frame[c].astype(str).str.lower() for c in flags})
        text = shown.to_csv(index=False)
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, "utf-8")


def _netcdf(frame: "pd.DataFrame") -> "xr.Dataset":
    """One variable per column along `row`; netCDF has no missing integers (-1 stands for them) or
    texts (empty)."""
    import numpy as np
    import xarray as xr

    columns = {}
    for name, column in frame.items():
        if str(column.dtype) == "Int64":
            column = column.fillna(-1).astype("int64")
        elif str(column.dtype) in ("object", "str", "string"):
            column = np.array(column.fillna("").astype(str).tolist())
        elif str(column.dtype) == "bool":
            column = column.astype("int8")
        columns[name] = ("row", column)
    return xr.Dataset(columns)
