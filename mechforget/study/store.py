"""The folder of a run: labelled arrays in a zarr store, chunks that are not joined yet, and the
manifest.

A result counts when the manifest names it, and a chunk when its file has its final name. Both are
written under another name first and then renamed, so a run that is killed at any moment loses at
most the chunk that it was computing.
"""

import copy
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechforget.errors import StudyError
from mechforget.study.settings import default_settings

if TYPE_CHECKING:
    import xarray as xr

MANIFEST = "manifest.json"
LAYOUT = 2  # how prompts are parted into chunks: a run goes on as it was begun
SHOWN = 12  # prompts whose tokens and attention a run keeps for the report


class Store:
    """Opens the folder of a run, or makes it.

    Raises: StudyError: the folder holds another study, or something else.
    """

    def __init__(self, path: Path, settings: dict[str, Any] | None = None) -> None:
        self.path = path
        self.prefix = ""
        self.tables: dict[tuple[str, ...], Any] = {}  # those that were computed
        file = path / MANIFEST
        if file.is_file():
            self.manifest: dict[str, Any] = _manifest(file)
            if settings is not None:
                self._same(settings)
        elif settings is None:
            raise StudyError(
                f"{path} is not a run (it has no {MANIFEST}); want a folder that compare made"
            )
        else:
            check_free(path)
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StudyError(
                    f"{path} cannot be made: {error.strerror}: another --out"
                ) from None
            self.manifest = {"settings": settings, "finished": []}
            self.save()

    def _same(self, settings: dict[str, Any]) -> None:
        old = default_settings() | self.manifest["settings"]  # it may be older than a setting
        keys = (settings.keys() | old.keys()) - {"memory"}  # no number depends on it
        other = sorted(k for k in keys if settings.get(k) != old.get(k))
        if other:
            said = ", ".join(f"{k} {old.get(k)!r} there, {settings.get(k)!r} now" for k in other)
            raise StudyError(
                f"{self.path} holds a run with other settings ({said}): give another --out"
            )

    def save(self) -> None:
        write(self.path / MANIFEST, json.dumps(self.manifest, indent=1, ensure_ascii=False) + "\n")

    def at(self, t: int) -> "Store":
        """The same run seen from checkpoint t of its sequence, 1 to T. The last one, T, is the run
        itself. Controls belong to the whole run."""
        if t == self.checkpoints:
            return self
        view = copy.copy(self)
        view.prefix, view.tables = f"checkpoint_{t}/", {}
        return view

    @property
    def checkpoints(self) -> int:
        """T: the number of checkpoints that are compared with pre."""
        return 1 + len(self.manifest["settings"].get("between", ()))

    @property
    def finished(self) -> list[str]:
        """The names of the results that are there, in the alphabet's order: tables don't depend on
        the order in which results were made."""
        names = [n for n in self.manifest["finished"] if n.startswith(self.prefix)]
        return sorted(n.removeprefix(self.prefix) for n in names)

    def _full(self, name: str) -> str:
        return name if name.startswith("control_") else self.prefix + name

    def has(self, name: str) -> bool:
        return self._full(name) in self.manifest["finished"]

    def put(self, name: str, data: "xr.Dataset") -> None:
        """Stores a finished result and deletes its chunks."""
        name = self._full(name)
        _write(data, self.path / "store.zarr", name)
        self.manifest["finished"].append(name)
        self.save()
        self.tables.clear()  # a table that was made before may have rows of this result now
        shutil.rmtree(self.path / "parts", ignore_errors=True)

    def begun(self) -> bool:
        """Whether numbers were measured before, with what they are made from in the manifest.

        Raises: StudyError: by a version that parted prompts otherwise.
        """
        if "checks" not in self.manifest:
            return False
        if self.manifest.get("layout") != LAYOUT:
            raise StudyError(
                f"{self.path} was begun by an earlier version, which parts prompts into other "
                "chunks: what it has can be read (report, export); give another --out to measure"
            )
        return True

    def get(self, name: str) -> "xr.Dataset":
        """Raises: StudyError: this run did not measure it."""
        import xarray as xr

        if not self.has(name):
            have = ", ".join(self.finished) or "nothing yet"
            raise StudyError(f"{self.path} has no {name}; it has: {have}")
        group = self._full(name)
        return xr.open_zarr(self.path / "store.zarr", group=group, consolidated=False).load()

    def part(self, name: str) -> "Chunks":
        name = self.prefix + name
        return Chunks(self.path / "parts" / re.sub(r"[^a-z0-9_]+", "_", name.lower()))


class Chunks:
    """The chunks of one result; implements `sweeps.chunks.Keep`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def finished(self) -> "list[xr.Dataset]":
        import xarray as xr

        chunks = sorted(self.folder.glob("*.zarr"))
        return [xr.open_zarr(chunk, consolidated=False).load() for chunk in chunks]

    def add(self, chunk: "xr.Dataset") -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        number = len(list(self.folder.glob("*.zarr")))
        name = self.folder / f"{number:06d}.zarr"
        _write(chunk, name.with_suffix(".tmp"))
        name.with_suffix(".tmp").replace(name)


def _write(data: "xr.Dataset", path: Path, group: str | None = None) -> None:
    # zarr format 3 has no settled way to store the labels of an axis; format 2 has.
    data.to_zarr(path, group=group, mode="w", consolidated=False, zarr_format=2)


def _manifest(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"settings", "finished"} <= found.keys():
        raise StudyError(f"{file} is not the manifest of a run: give another folder")
    return found


def check_free(path: Path) -> None:
    """Raises: StudyError: no new run can be made at `path`."""
    if path.exists():
        # A run killed while it was made leaves no more than this.
        own = {MANIFEST + ".tmp"}
        if not path.is_dir() or {entry.name for entry in path.iterdir()} - own:
            raise StudyError(f"{path} exists and is not a run: give another --out, or empty it")
    above = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise StudyError(f"{path} cannot be made: {above} is not a folder that can be written to")


def write(path: Path, text: str) -> None:
    """Writes the whole file or none of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
