"""The user's cache: folders that are made once, either completely or not at all."""

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
    """The folder `name` of the cache; if it doesn't exist yet, `make(folder)` fills it.

    The folder gets its name by an atomic rename after `make` has returned. So a process that is
    killed leaves nothing under `name`, and the next process removes the unfinished folder. If
    several processes ask at the same time, one makes the folder and the others wait.
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
