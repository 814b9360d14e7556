"""Hugging Face `datasets`: a folder (saved with save_to_disk, or of data files), or the hub."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mechforget.errors import TaskError
from mechforget.tasks.files import Records

if TYPE_CHECKING:
    from datasets import DatasetDict


DATA = {".jsonl", ".json", ".csv", ".parquet", ".arrow"}


def is_folder(source: str) -> bool:
    """Whether it is a folder, perhaps followed by ":split"."""
    return bool(source) and Path(_parts(source)[0]).is_dir()


def read(ref: str) -> tuple[Records, str]:
    """(rows, name) of "hub:org/name[:split]" or "folder[:split]".

    The split may be left out if there is only one. Class labels become their names. Images, sound
    and video are left out. Code that comes with a dataset is never run.
    Raises: TaskError: the hub can't be reached, there is no such dataset or split, or its data
        can't be read.
    """
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    place, split = _parts(ref.removeprefix("hub:"))
    try:
        with _quiet():
            found = _from_hub(place) if ref.startswith("hub:") else _from_folder(Path(place))
    except (HTTPError, DatasetsError, OSError, ValueError, RuntimeError) as error:
        # datasets wraps what went wrong in "An error occurred while generating the dataset".
        cause = error.__cause__ if isinstance(error, DatasetsError) else None
        reason = " ".join(str(cause or error).split())[:200]
        raise TaskError(f"{ref}: no dataset that can be read: {reason}") from None

    splits = ", ".join(map(str, found))
    if split is None and len(found) > 1:
        raise TaskError(f"{ref}: which of its splits: {splits}? Put one behind it: {ref}:NAME")
    if split is not None and split not in found:
        raise TaskError(f"{ref}: no split {split!r} among {splits}")
    table = found[split or next(iter(found))]
    media = (datasets.Image, datasets.Audio, datasets.Video)
    table = table.remove_columns([k for k, v in table.features.items() if isinstance(v, media)])
    records: Records = table.to_list()
    for name, feature in table.features.items():
        if isinstance(feature, datasets.ClassLabel):
            for record in records:
                if record[name] is not None:
                    record[name] = feature.int2str(record[name])
    return records, place.rstrip("/").rpartition("/")[2]


def _parts(ref: str) -> tuple[str, str | None]:
    """(place, split or None). A folder may have a colon in its name."""
    place, colon, split = ref.rpartition(":")
    return (place, split) if colon and not Path(ref).is_dir() else (ref, None)


def _from_folder(folder: Path) -> DatasetDict:
    import datasets

    if not ((folder / "dataset_dict.json").exists() or (folder / "state.json").exists()):
        # Looked at first, since load_dataset walks through everything below, however much.
        near = (path for pattern in ("*", "*/*") for path in folder.glob(pattern))
        if not any(path.suffix.lower() in DATA for path in near):
            raise FileNotFoundError(f"no {', '.join(sorted(DATA))} file in this folder")
        return datasets.load_dataset(str(folder))
    saved = datasets.load_from_disk(str(folder))
    return (
        saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict({"all": saved})
    )


def _from_hub(name: str) -> DatasetDict:
    import datasets
    from huggingface_hub import HfApi, constants

    # From there, since which library it comes from (requests, httpx, httpx2) changes by version.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    if not constants.HF_HUB_OFFLINE:  # asked once: load_dataset would retry for half a minute
        try:
            HfApi().dataset_info(name, timeout=10)
        except (HTTPError, OSError) as error:
            if getattr(error, "response", None) is not None:
                raise  # the hub did answer
            raise TaskError(
                f"hub:{name}: the Hugging Face Hub is out of reach ({error}): give a local folder, "
                f"or set HF_HUB_OFFLINE=1 if it was downloaded before"
            ) from None
    return datasets.load_dataset(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, progress bars and third-party warnings appear only on a terminal."""
    import datasets

    if sys.stderr.isatty():
        yield
        return
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = not datasets.are_progress_bars_disabled()
    try:
        datasets.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
