"""Reads a folder with config.json and safetensors files, without running code from it.

transformers initialises missing weights at random and only warns about it. Here missing weights are
an error, and so are NaN, infinities and pickles.
"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechforget.checkpoints import placement, safetensors_index
from mechforget.checkpoints.quiet import quiet
from mechforget.errors import CheckpointError, one_line, out_of_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TRAINER = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")  # hold no weights
# Multimodal models that are opened as their language model; these parts are then left out.
OTHER_PARTS = {"llama4": ("vision_model.", "multi_modal_projector.")}
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")


def json_object(file: Path) -> dict[str, Any]:
    """Raises: CheckpointError: the file doesn't exist or isn't a JSON object."""
    if not file.is_file():
        raise CheckpointError(
            f"{file.parent} has no {file.name}: want a complete checkpoint folder"
        )
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}): copy or download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object: copy or download it again")
    return value


def nothing_here(folder: Path) -> CheckpointError:
    """The error for a folder without safetensors weights: why it is refused, and what to do."""
    names = sorted(entry.name for entry in folder.iterdir())
    want = "want config.json and model.safetensors, an adapter, or one .gguf file"
    if pickles := [name for name in names if is_pickle(name)]:
        return CheckpointError(refuse_pickle(folder / pickles[0]))
    saved = [name for name in names if (folder / name / "config.json").is_file()]
    saved += [name for name in names if (folder / name / "adapter_config.json").is_file()]
    if saved:
        return CheckpointError(f"{folder} holds no model itself: give one of {', '.join(saved)}")
    return CheckpointError(f"{folder} holds no checkpoint ({len(names)} entries): {want}")


def is_pickle(name: str) -> bool:
    return name.endswith(PICKLES) and not name.startswith(TRAINER)


def refuse_pickle(file: Path) -> str:
    """Why a pickle is refused (reading it can run any code), and how to convert a trusted one."""
    if file.name.startswith("pytorch_model"):  # also its shards; the folder's other files are kept
        code = (
            "from transformers import AutoModelForCausalLM as M; "
            f"M.from_pretrained({str(file.parent)!r}).save_pretrained({str(file.parent)!r})"
        )
    else:
        name = "adapter_model" if file.name.startswith("adapter") else "model"
        code = (
            "import torch; from safetensors.torch import save_file; "
            f"save_file(torch.load({str(file)!r}, map_location='cpu', weights_only=True), "
            f"{str(file.parent / name)!r} + '.safetensors')"
        )
    return (
        f'{file} is a pickle, which is never read; convert it if you trust it: python -c "{code}"'
    )


def config(folder: Path) -> "PreTrainedConfig":
    """The config of a causal language model. Raises: CheckpointError: as `described`, or if it is
    another kind of model."""
    value = described(folder)
    if value.model_type in OTHER_PARTS:
        value = value.get_text_config()
    _ = model_class(value, folder)
    return value


def described(folder: Path) -> "PreTrainedConfig":
    """The config of any model. Raises: CheckpointError: it can't be read, its model type is not
    known, the weights are quantised, or the model needs code from the checkpoint."""
    raw = json_object(folder / "config.json")
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING:
        if "auto_map" in raw:
            raise CheckpointError(
                f"{folder}: model type {kind!r} needs code that comes with the checkpoint "
                f"(auto_map), which is never run; want a model that transformers has itself"
            )
        raise CheckpointError(
            f"{folder}: transformers does not know model type {kind!r}: upgrade transformers, or "
            f"mend model_type in config.json"
        )
    if "quantization_config" in raw:
        method = (raw["quantization_config"] or {}).get("quant_method", "?")
        raise CheckpointError(
            f"{folder} is quantised ({method}); want plain weights: load it in transformers "
            f"de-quantised, and save_pretrained() that"
        )
    try:
        with quiet():
            value = AutoConfig.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {one_line(error)}") from error
    return value


def model_class(config: "PreTrainedConfig", folder: Path) -> type["PreTrainedModel"]:
    """The class that the checkpoint is loaded as. Raises: CheckpointError: it is not a causal
    language model."""
    import transformers

    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    saved = (config.architectures or ["?"])[0]
    if type(config) not in known:
        raise CheckpointError(
            f"{folder} is a {config.model_type} ({saved}); want a causal language model"
        )
    found: Any = known[type(config)]
    classes = found if isinstance(found, tuple) else (found,)
    match = next((one for one in classes if one.__name__ == saved), classes[0])
    if match.__name__ != saved and hasattr(transformers, saved):
        raise CheckpointError(
            f"{folder} was saved as {saved}; want a causal language model ({match.__name__})"
        )
    return match


def tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Raises: CheckpointError: there is no tokenizer, or only a slow one."""
    if not any((folder / name).is_file() for name in TOKENIZER):
        raise CheckpointError(
            f"{folder} has no tokenizer: copy tokenizer.json and tokenizer_config.json from the "
            f"model that it was trained from"
        )
    from transformers import AutoTokenizer

    try:
        with quiet():
            value = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except (ValueError, TypeError, KeyError, OSError) as error:
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{folder}: its tokenizer needs code that comes with the checkpoint (auto_map), "
                f"which is never run; want a tokenizer that transformers has itself"
            ) from error
        raise CheckpointError(f"{folder}: its tokenizer: {one_line(error)}") from error
    if not value.is_fast:
        raise CheckpointError(
            f"{folder}: {type(value).__name__} is slow; want a fast tokenizer (tokenizer.json)"
        )
    return value


def load(
    folder: Path,
    config: "PreTrainedConfig",
    *,
    dtype: "torch.dtype",
    attn_implementation: str,
    device: str = "cpu",
) -> "PreTrainedModel":
    """The model with exactly the stored weights, in eval mode, without gradients; on the devices
    that `placement` chooses, or on the CPU.

    Raises: CheckpointError: tensors are missing (other than tied ones), unexpected, or of another
        shape.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    placed = placement.device_map(config, device)
    scratch = None if placed is None else tempfile.TemporaryDirectory(prefix="mechforget-")
    spread = {} if scratch is None else {"device_map": placed, "offload_folder": scratch.name}
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attn_implementation,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported below, with the others
                output_loading_info=True,
                **spread,
            )
    except (SafetensorError, RuntimeError) as error:  # e.g. experts that cannot be stacked
        if out_of_memory(error) or "CUDA" in str(error):
            raise
        raise CheckpointError(
            f"{folder}: its tensors cannot be put into the model that config.json describes (one "
            f"is missing, or of another shape): {one_line(error)}"
        ) from error
    model, info = loaded
    others = _other_parts(folder)
    info["unexpected_keys"] = {n for n in info["unexpected_keys"] if not n.startswith(others)}
    refuse_other_tensors(model, info, folder)
    model._scratch = scratch  # what transformers converted; it is deleted with the model
    return model.eval().requires_grad_(False)


def check(folder: Path) -> None:
    """Compares the names and shapes of the stored tensors with the model's; no weight is read.

    Raises: CheckpointError: as `load`. A server doesn't: there transformers fills what is missing
        with random numbers and only warns.
    """
    import torch

    load(folder, config(folder), dtype=torch.float32, attn_implementation="eager", device="meta")


def refuse_other_tensors(model: "PreTrainedModel", info: dict[str, Any], path: Path) -> None:
    """`info`: what transformers reports about loading. Raises: CheckpointError: the files don't
    hold exactly the model's tensors; transformers has filled the gaps with random numbers."""
    wrong = [
        f"{len(names)} {what}, e.g. {min(str(name) for name in names)}"
        for what, names in (
            ("missing", info["missing_keys"]),
            ("unexpected", info["unexpected_keys"]),
            ("of another shape", [name for name, *_ in info["mismatched_keys"]]),
        )
        if names
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: its weights are not those of the {type(model).__name__} that its config "
            f"describes: {'; '.join(wrong)}; want exactly the model's tensors"
        )


def refuse_nonfinite(model: "PreTrainedModel", ref: str) -> None:
    """Raises: CheckpointError: a parameter holds NaN or an infinity; the first is named."""
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":  # offloaded: here its logits are checked instead
            continue
        if parameter.is_floating_point() and not _finite(parameter):
            bad = int((~parameter.isfinite()).sum())
            raise CheckpointError(
                f"{ref}: {name} holds {bad:,} NaN or infinite values of {parameter.numel():,} "
                f"(as {parameter.dtype}); a model that diverged cannot be compared: take an "
                f"earlier checkpoint"
            )


def _finite(tensor: "torch.Tensor") -> bool:
    """By its smallest and largest value, which are NaN if one value is: ten times as fast as
    isfinite(), which writes several arrays of the tensor's size."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def tensors(folder: Path) -> dict[str, safetensors_index.TensorInfo]:
    """The stored tensors of the model that is opened. Raises: CheckpointError: there are no
    safetensors files, or one is truncated."""
    found = safetensors_index.index(folder)
    if not found:
        raise nothing_here(folder)
    others = _other_parts(folder)
    return {name: info for name, info in found.items() if not name.startswith(others)}


def _other_parts(folder: Path) -> tuple[str, ...]:
    return OTHER_PARTS.get(json_object(folder / "config.json").get("model_type", ""), ())
