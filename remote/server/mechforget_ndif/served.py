"""The models that are served, and the adapters: those named at the start, and no others."""

import json
import math
import os
import struct
from pathlib import Path

# NDIF's own variable: what the controller loads when it starts.
KEYS: tuple[str, ...] = tuple(filter(None, os.environ.get("NDIF_DEPLOYMENTS", "").split("|")))

# An adapter's folder -> the key of the base that wears it on request.
ADAPTERS: dict[str, str] = json.loads(os.environ.get("MECHFORGET_ADAPTERS") or "{}")


def name(key: str) -> str:
    """`module.Class:{"repo_id": …}` -> the folder or hub id, with @revision if it has one."""
    try:
        model = json.loads(key.partition(":")[2])
        revision = model.get("revision")
        return model["repo_id"] + (f"@{revision}" if revision else "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return key


def refusal(key: str) -> str | None:
    """Why a request for `key` isn't answered, or None if it is served."""
    if key in KEYS:
        return None
    served = ", ".join(map(name, KEYS)) or "none"
    if name(key) in map(name, KEYS):
        return f"{name(key)} is served as another kind of model: came {key}, want one of {KEYS}"
    return f"{name(key)} isn't served here, only: {served}. Start the server with it to add it"


def adapters(key: str) -> list[str]:
    """The adapters that can be put on this model."""
    return [adapter for adapter, base in ADAPTERS.items() if base == key]


def adapter_refusal(key: str, adapter: object) -> str | None:
    """Why `adapter` isn't put on this model, or None if it can be."""
    if adapter in adapters(key):
        return None
    here = ", ".join(adapters(key)) or "none"
    return (
        f"adapter {adapter} isn't served with {name(key)}, only: {here}. Start the server with it "
        "to add it, or merge it (load(), save_pretrained()) and serve that folder"
    )


def size(key: str, dtype: str) -> int | None:
    """Bytes of the weights, read off the safetensors headers; None if the files aren't here.
    NDIF would ask the hub, and refuse a model that it knows from the cache alone."""
    from nnsight.modeling.mixins.remotable import bytes_per_element

    model = json.loads(key.partition(":")[2])
    folder = Path(model["repo_id"])
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            found = snapshot_download(
                model["repo_id"], revision=model.get("revision"), local_files_only=True
            )
        except Exception:
            return None
        folder = Path(found)
    files = list(folder.glob("*.safetensors"))
    return math.ceil(sum(map(_elements, files)) * bytes_per_element(dtype)) if files else None


def _elements(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return sum(math.prod(t["shape"]) for n, t in header.items() if n != "__metadata__")
