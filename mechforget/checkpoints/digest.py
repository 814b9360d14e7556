"""SHA-256 of weight files, streamed and cached by path, size and modification time."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from mechforget import progress
from mechforget.checkpoints import cache

BLOCK = 1 << 20  # bytes: a larger one leaves the processor's cache


def digest(files: Sequence[Path]) -> str:
    """For one file its SHA-256; for several the SHA-256 of what `sha256sum` prints for them.

    In a shell, in that folder: `sha256sum a.safetensors b.safetensors | sha256sum`.
    """
    if len(files) == 1:
        return of_file(files[0])
    listing = "".join(f"{of_file(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def of_file(file: Path) -> str:
    stat = file.stat()
    key = f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    memo = cache.root() / "digests" / hashlib.sha256(key.encode()).hexdigest()
    with contextlib.suppress(OSError):
        return memo.read_text()
    value = _sha256(file, stat.st_size)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the run
        memo.parent.mkdir(parents=True, exist_ok=True)
        partial = memo.with_name(f"{memo.name}.{os.getpid()}")
        partial.write_text(value)
        partial.replace(memo)
    return value


def _sha256(file: Path, size: int) -> str:
    found = hashlib.sha256()
    with (
        file.open("rb", buffering=0) as stream,
        progress.bar(f"SHA-256 of {file.name}", round(size / 1e9, 3), "GB") as advance,
    ):
        while block := stream.read(BLOCK):
            found.update(block)
            advance(len(block) / 1e9)
    return found.hexdigest()
