"""What a LoRA adapter adds to its base's stored tensors, scale · B A, a few rows at a time."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mechforget.checkpoints import adapter, folder, safetensors_index
from mechforget.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

NAMED = "base_model.model."


@dataclass(frozen=True)
class Added:
    """left [rows, r] @ right [r, columns], in the layout of the base's tensor; left contains the
    scale."""

    left: "np.ndarray"
    right: "np.ndarray"

    def rows(self, begin: int, end: int) -> "np.ndarray":
        return self.left[begin:end] @ self.right


def added(path: Path, base: dict[str, tuple[int, ...]], *, transposed: bool) -> dict[str, Added]:
    """What is added, by the names of the base's tensors. base: their shapes. transposed: linear
    layers are stored as [in, out].

    Raises: CheckpointError: the adapter doesn't fit, or is not plain LoRA on linear layers in the
        blocks.
    """
    from peft.utils.other import get_pattern_key

    try:
        adapter.check_wearable(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"adapter {path} can't be streamed ({str(error).partition('(')[2].partition(')')[0]}): "
            "want plain LoRA on linear layers inside the blocks; merge it (load(), "
            "save_pretrained()) and give that folder"
        ) from error
    settings = folder.json_object(path / adapter.CONFIG)
    stored = safetensors_index.header(path / adapter.WEIGHTS)
    found = {}
    for name in stored:
        if ".lora_A." not in name:
            continue
        module = name.removeprefix(NAMED).partition(".lora_A.")[0]
        other = name.replace(".lora_A.", ".lora_B.")
        if other not in stored:
            raise CheckpointError(f"adapter {path} has {name} without {other}: copy it again")
        a, b = (
            safetensors_index.read(n, stored[n]).float().numpy() for n in (name, other)
        )  # [r, in], [out, r]
        patterns = settings.get("alpha_pattern") or {}
        alpha = patterns.get(get_pattern_key(list(patterns), module), settings["lora_alpha"])
        scale = alpha / (math.sqrt(len(a)) if settings.get("use_rslora") else len(a))
        target = _target(f"{module}.weight", base)
        pair = (a.T, b.T) if transposed else (b, a)
        if target is None or base[target] != (pair[0].shape[0], pair[1].shape[1]):
            raise CheckpointError(
                f"adapter {path} does not fit its base: {module} is "
                f"{[len(b), a.shape[1]]} in the adapter, "
                f"{'absent' if target is None else list(base[target])} in the base; {adapter.MEND}"
            )
        found[target] = Added(pair[0] * scale, pair[1])
    return found


def _target(name: str, base: dict[str, tuple[int, ...]]) -> str | None:
    """The base may be saved with or without its model's prefix."""
    if name in base:
        return name
    ends = [n for n in base if n.endswith(f".{name}") or name.endswith(f".{n}")]
    return ends[0] if len(ends) == 1 else None
