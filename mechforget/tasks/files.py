"""Task files, one row per prompt: JSONL, CSV and parquet, as plain records."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from mechforget.errors import TaskError
from mechforget.tasks.task import TEXT

Records = list[dict[str, Any]]


def read(path: Path) -> Records:
    """The rows of a file, read by its suffix. An empty CSV cell counts as missing.

    Raises: TaskError: a line is broken (its number is given), the file is not UTF-8, or the suffix
        is not known.
    """
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        known = ", ".join([*readers, ".json (a relation with 'samples')"])
        raise TaskError(
            f"{path}: the name is not that of a task file: want {known} or a datasets folder"
        )
    return reader(path)


def text(path: Path) -> str:
    """The file's text. Raises: TaskError: it can't be read."""
    try:
        # newline="": a carriage return inside a quoted cell is data. utf-8-sig: spreadsheets' mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path}: not UTF-8 at byte {error.start}: save it with that encoding"
        ) from None
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror}: want a file that can be read") from None


def _jsonl(path: Path) -> Records:
    records = []
    for number, line in enumerate(text(path).split("\n"), 1):  # not splitlines: U+2028 is text
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            as_text = json.loads(line, parse_int=str, parse_float=str)  # 1.50 stays 1.50
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{path}: line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise TaskError(
                f"{path}: line {number} is a {type(record).__name__}: want an object a line"
            )
        records.append({**record, **{name: as_text[name] for name in TEXT if name in record}})
    return records


def _csv(path: Path) -> Records:
    lines = csv.reader(io.StringIO(text(path), newline=""), strict=True)
    records: Records = []
    header: list[str] | None = None
    try:
        for cells in lines:
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    twice = next(name for name in header if header.count(name) > 1)
                    raise TaskError(f"{path}: column {twice!r} appears twice: rename one")
                continue
            if len(cells) != len(header):
                raise TaskError(
                    f"{path}: line {lines.line_num} has {len(cells)} cells, the header "
                    f"{len(header)}: quote cells that hold a comma"
                )
            records.append({name: cell or None for name, cell in zip(header, cells, strict=True)})
    except csv.Error as error:
        raise TaskError(f"{path}: line {lines.line_num} is no CSV: {error}") from None
    return records


def _parquet(path: Path) -> Records:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path).read().to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TaskError(f"{path}: no parquet file that can be read: {reason}") from None
