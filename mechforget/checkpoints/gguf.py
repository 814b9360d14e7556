"""GGUF files (llama.cpp's format): de-quantised once, into a safetensors folder in the cache.

What is compared is the de-quantised model in float32, which has the weights that inference uses.
"""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from mechforget.checkpoints import cache, digest
from mechforget.checkpoints.folder import refuse_other_tensors
from mechforget.checkpoints.quiet import quiet
from mechforget.errors import CheckpointError

PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def only_file(folder: Path) -> Path | None:
    """The .gguf file of a folder, or None. Raises: CheckpointError: there are several."""
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(f"{folder} holds {len(found)} GGUF files: give one of {names}")
    return found[0] if found else None


def check_file(file: Path) -> None:
    """Raises: CheckpointError: it is not a GGUF file, or only a part of one."""
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise CheckpointError(f"{file} is no GGUF file (begins with {magic!r}): download it again")
    if PART.search(file.name):
        raise CheckpointError(
            f"{file} is one part of a split GGUF: join the parts with `llama-gguf-split --merge`"
        )


def convert(file: Path) -> Path:
    """The safetensors folder of a GGUF file: made on first use, then taken from the cache.

    Raises: CheckpointError: it is truncated, or transformers cannot read its architecture.
    """
    name = f"{file.stem}-{digest.of_file(file)[:12]}-float32"

    def make(folder: Path) -> None:
        check_whole(file)
        write_folder(file, folder)

    return cache.build(f"gguf/{name}", make)


def check_whole(file: Path) -> None:
    """Raises: CheckpointError: the file is shorter than its header says."""
    from gguf import GGUFReader

    try:
        GGUFReader(file)  # maps the file; every tensor's bytes must lie inside
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{file} ({file.stat().st_size:,} bytes) is truncated or damaged "
            f"({' '.join(str(error).split())[:120]}): copy or download it again"
        ) from error


def write_folder(file: Path, folder: Path) -> None:
    """Write model and tokenizer of `file`, de-quantised to float32, as a checkpoint folder.

    Raises: CheckpointError: transformers doesn't know the model, or tensors are missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Otherwise blocks stay packed if there is a GPU kernel, and the config stays that of a GGUF.
    whole = GgufConfig(dequantize=True)
    try:
        # This loader draws its progress bars whatever the settings are.
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                quantization_config=whole,
                dtype=torch.float32,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                file.parent, gguf_file=file.name, local_files_only=True
            )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise CheckpointError(
            f"{file}: transformers cannot read this GGUF ({' '.join(str(error).split())[:160]}): "
            f"give the model's safetensors folder"
        ) from error
    model, info = loaded
    refuse_other_tensors(model, info, file)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
