"""The user's cache: things that are made once, whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def root() -> Path:
    """`MECHFORGET_CACHE`, else `~/.cache/mechforget` (or under `XDG_CACHE_HOME`)."""
    if own := os.environ.get("MECHFORGET_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mechforget"


def build(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; `make(folder)` fills it if it is not there yet.

    It gets its name only when `make` has returned, by an atomic rename: a process that is killed
    leaves nothing under `name`, and what it left beside is removed by the next. Of several
    processes that ask at once one makes it, the others wait.
    """
    final = root() / name
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    from filelock import FileLock

    with FileLock(f"{final}.lock"):
        if not final.is_dir():
            partial = final.with_name(f"{final.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                make(partial)
            except BaseException:  # a full disk, Ctrl-C: give the space back
                shutil.rmtree(partial, ignore_errors=True)
                raise
            partial.rename(final)
    return final
