"""A run's tables as files: CSV and JSON also to standard output."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mechforget.errors import StudyError
from mechforget.study import tables
from mechforget.study.store import Store

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def export(store: Store, measure: str, form: str, out: Path | None) -> None:
    """A run's table. Raises: StudyError: no such measure, or as `check`."""
    check(form, out)
    write(tables.export(store, measure), form, out)


def check(form: str, out: Path | None) -> None:
    """Raises: StudyError: a binary format without a file, or no place for the file."""
    if out is None and form in ("parquet", "netcdf"):
        raise StudyError(f"{form} is binary: give --out FILE")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise StudyError(f"--out {out}: want a file in a folder that exists")


def write(table: "pd.DataFrame", form: str, out: Path | None) -> None:
    """Only the data, in full precision; true and false in lower case; missing values empty.

    form: csv, json, parquet or netcdf.
    """
    if form == "parquet":
        table.to_parquet(out, index=False)
        return
    if form == "netcdf":
        _netcdf(table).to_netcdf(out)
        return
    if form == "json":
        # pandas' own writer rounds to 15 decimals, which leaves little of a small p.
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        # JSON has no infinity either: a relative change of what was zero.
        ends = (float("inf"), -float("inf"))
        rows = [{k: None if v in ends else v for k, v in row.items()} for row in rows]
        text = json.dumps(rows, ensure_ascii=False, allow_nan=False) + "\n"
    else:
        flags = table.select_dtypes("bool").columns
        shown = table.assign(**{c: table[c].astype(str).str.lower() for c in flags})
        text = shown.to_csv(index=False)
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, "utf-8")


def _netcdf(table: "pd.DataFrame") -> "xr.Dataset":
    """One variable per column along `row`; netCDF has no missing integers (-1 stands for them) or
    texts (empty)."""
    import numpy as np
    import xarray as xr

    columns = {}
    for name, column in table.items():
        if str(column.dtype) == "Int64":
            column = column.fillna(-1).astype("int64")
        elif str(column.dtype) in ("object", "str", "string"):
            column = np.array(column.fillna("").astype(str).tolist())
        elif str(column.dtype) == "bool":
            column = column.astype("int8")
        columns[name] = ("row", column)
    return xr.Dataset(columns)
