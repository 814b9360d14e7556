"""A checkpoint's tensors in its files, under one name whichever prefix they were saved with."""

import mmap
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mechforget.checkpoints import folder
from mechforget.checkpoints.checkpoint import Checkpoint
from mechforget.checkpoints.differences import few
from mechforget.checkpoints.families import family
from mechforget.checkpoints.layout import BLOCK, heads_of
from mechforget.checkpoints.low_rank import Added, added
from mechforget.checkpoints.safetensors_index import TensorInfo
from mechforget.errors import CheckpointError

AHEAD = 1 << 25  # bytes that are read ahead
# Buffers that older versions saved; they are not weights.
BUFFER = re.compile(r"(?:^|\.)(?:rotary_emb\.inv_freq|(?:attn|attention)\.(?:masked_)?bias)$")
HEAD = ("lm_head.weight", "embed_out.weight")
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Stored:
    """The tensors of one checkpoint, by their names without the model's prefix."""

    ref: str
    heads: dict[str, Any]
    tied: bool
    tensors: dict[str, TensorInfo]
    added: dict[str, Added]

    @cached_property
    def files(self) -> "dict[Path, _File]":
        return {file: _File(file) for file in {info.file for info in self.tensors.values()}}

    def bytes(self, name: str) -> np.ndarray:
        info = self.tensors[name]
        return self.files[info.file].bytes[info.begin : info.end]

    def place(self, name: str) -> tuple[int, ...]:
        """Where its bytes are on the disk; hard links to one file have the same place."""
        info = self.tensors[name]
        seen = info.file.stat()
        return seen.st_dev, seen.st_ino, info.begin


def stored(checkpoint: Checkpoint) -> Stored:
    """Reads headers and JSON files only. Raises: CheckpointError: the checkpoint is a GGUF file, is
    quantised, or is an adapter other than plain LoRA."""
    if checkpoint.kind == "gguf":
        raise CheckpointError(
            f"{checkpoint.ref} is a GGUF, whose packed weights can't be streamed: give the folder "
            f"that mechforget.checkpoints.open(...).folder converts it to"
        )
    config = folder.json_object(checkpoint.folder / "config.json")
    if "quantization_config" in config:
        raise CheckpointError(f"{checkpoint.ref} is quantised: want plain weights, de-quantised")
    raw = {n: info for n, info in checkpoint.tensors().items() if not BUFFER.search(n)}
    for name, info in raw.items():
        if info.dtype not in FLOATS:
            raise CheckpointError(
                f"{checkpoint.ref}: {name} is stored as {info.dtype}; want one of "
                f"{', '.join(FLOATS)} (quantised weights: de-quantise and save them first)"
            )
    heads, more = heads_of(config), {}
    if checkpoint.kind == "adapter":
        shapes = {name: info.shape for name, info in raw.items()}
        more = added(checkpoint.path, shapes, transposed=family(heads["model_type"]).conv1d)
    prefix = next((n[: found.start()] for n in raw if (found := BLOCK.search(n))), "")
    # Llama 4 as it is published: its lm_head doesn't have the prefix.
    names = {name: name.removeprefix(prefix).removeprefix("language_model.") for name in raw}
    text = config.get("text_config") or config
    return Stored(
        checkpoint.ref,
        heads,
        bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings"))),
        {names[name]: info for name, info in raw.items()},
        {names[name]: one for name, one in more.items()},
    )


def alike(all_of: list[Stored]) -> list[str]:
    """The names that all have, in the order of the first checkpoint's files.

    Raises: CheckpointError: architectures, names or shapes differ; in one line.
    """
    first = all_of[0]
    names = set(first.tensors)
    for other in all_of[1:]:
        clauses = []
        kinds = first.heads["model_type"], other.heads["model_type"]
        if kinds[0] != kinds[1]:
            clauses.append(f"architecture {kinds[0]} / {kinds[1]}")
        elif moved := [k for k in first.heads if first.heads[k] != other.heads[k]]:
            clauses.append(f"config: {moved[0]} {first.heads[moved[0]]} / {other.heads[moved[0]]}")
        for i, (a, b) in enumerate(((first, other), (other, first))):
            odd = a.tensors.keys() - b.tensors.keys()
            odd -= {n for n in odd if n in HEAD and b.tied}  # a tied copy, saved once
            if odd:
                clauses.append(f"tensors only in the {('first', 'second')[i]}: {few(sorted(odd))}")
        both = first.tensors.keys() & other.tensors.keys()
        shapes = [(n, first.tensors[n].shape, other.tensors[n].shape) for n in sorted(both)]
        if moved := [f"{n} {list(a)} / {list(b)}" for n, a, b in shapes if a != b]:
            clauses.append(f"shapes: {few(moved)}")
        if clauses:
            raise CheckpointError(
                f"{first.ref} and {other.ref} can't be compared: {'; '.join(clauses)}; want two "
                "checkpoints of one model"
            )
        names &= both
    at = {name: (str(first.tensors[name].file), first.tensors[name].begin) for name in names}
    return sorted(names, key=at.__getitem__)


class _File:
    """A memory-mapped file that is read a little ahead of use."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as stream:
            self.map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.asked = 0

    def ask(self, at: int) -> None:
        if self.asked - AHEAD <= at <= self.asked - AHEAD // 2 or not hasattr(self.map, "madvise"):
            return
        start = max(at, min(self.asked, at + AHEAD)) // mmap.PAGESIZE * mmap.PAGESIZE
        self.asked = at + AHEAD
        if start < len(self.map):
            length = min(self.asked, len(self.map)) - start
            self.map.madvise(mmap.MADV_WILLNEED, start, length)
