"""The header of a safetensors file: names, shapes, dtypes and byte ranges. No data is read.

The format (huggingface.co/docs/safetensors): 8 bytes (little endian) with the header's length n;
n bytes of JSON; the data, without gaps. So the header tells how long the file must be.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mechforget.errors import CheckpointError

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: bytes `begin` to `end` (from the start of `file`) hold it, row-major."""

    file: Path
    dtype: str  # as the format names it: F32, BF16, I64, ...
    shape: tuple[int, ...]
    begin: int
    end: int


def header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one file.

    Raises: CheckpointError: it is no safetensors file, or not as long as its header says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        if first == b"version ":
            raise CheckpointError(f"{file} is a git-lfs pointer, not weights: run `git lfs pull`")
        length = int.from_bytes(first, "little")
        raw = stream.read(length) if 8 + length <= size else b""
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        data = 8 + length  # offsets count from the end of the header
        tensors = {
            name: TensorInfo(
                file,
                entry["dtype"],
                tuple(entry["shape"]),
                data + entry["data_offsets"][0],
                data + entry["data_offsets"][1],
            )
            for name, entry in entries.items()
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{file} ({size:,} bytes) is truncated or no safetensors file: its header cannot be "
            f"read; copy or download it again"
        ) from error
    want = max((info.end for info in tensors.values()), default=data)
    if size != want:
        raise CheckpointError(
            f"{file} is {'truncated' if size < want else 'damaged'}: {size:,} bytes where its "
            f"header wants {want:,}; copy or download it again"
        )
    return tensors


def files(folder: Path) -> list[Path]:
    """The weight files of a folder, chosen as transformers does: the single file, else the shards.

    Other files beside them (optimizer.pt, a second format) are ignored.
    Raises: CheckpointError: the index cannot be read, or it names shards that are missing or
        outside the folder.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return []
    names = set(_weight_map(folder).values())
    if outside := sorted(n for n in names if Path(n).is_absolute() or ".." in Path(n).parts):
        raise CheckpointError(
            f"{folder / INDEX} names {outside[0]!r}, outside the checkpoint's folder, which is not "
            f"read: want its shards beside it"
        )
    shards = sorted(folder / name for name in names)
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(shards)} shards are missing, e.g. {missing[0]}; "
            f"copy or download it again"
        )
    return shards


def index(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a folder, single or sharded, by name. Raises: CheckpointError, as above."""
    tensors: dict[str, TensorInfo] = {}
    for file in files(folder):
        tensors |= header(file)
    sharded = tensors and not (folder / SINGLE).is_file()
    if sharded and (lost := set(_weight_map(folder)) - set(tensors)):
        raise CheckpointError(
            f"{folder}: its index names {len(lost)} tensors that no shard holds, e.g. "
            f"{min(lost)}; copy or download it again"
        )
    return tensors


def read(name: str, info: TensorInfo) -> "torch.Tensor":
    """One tensor, as stored, without reading the others."""
    from safetensors import safe_open

    with safe_open(info.file, framework="pt") as file:
        return file.get_tensor(name)


def _weight_map(folder: Path) -> dict[str, str]:
    try:
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / INDEX} cannot be read ({type(error).__name__}): want JSON with a "
            f"weight_map; copy or download it again"
        ) from error
