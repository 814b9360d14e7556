"""A LoRA adapter (peft): a few matrices that are added to a base model when it is loaded."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mechforget.checkpoints import folder, hub, safetensors_index
from mechforget.checkpoints.quiet import quiet
from mechforget.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Inside a block, but not in a mixture's experts: the matrices of these are one parameter.
LINEAR = re.compile(r"base_model\.model\.(?!.*\.experts\.).+\.\d+\..+\.lora_[AB]\.weight")
# Settings that peft also calls LoRA, but with which the result isn't W + scale · B A with W kept.
OTHERWISE = (
    *("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters"),
    *("layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config"),
    *("kasa_config", "monteclora_config", "velora_config"),
)
INITS = (True, False, "gaussian", "orthogonal")  # other initialisations change the base's weights
MEND = f"write the model that it was trained on as base_model_name_or_path in {CONFIG}"


def check_files(path: Path) -> None:
    """Raises: CheckpointError: it is not LoRA, is a pickle, is truncated, or has a whole model
    beside it."""
    kind = folder.json_object(path / CONFIG).get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: an adapter of type {kind}; want LoRA (peft_type LORA)")
    if safetensors_index.files(path):
        raise CheckpointError(
            f"{path} holds both a whole model and an adapter: move one of them to its own folder"
        )
    if not (path / WEIGHTS).is_file():
        raise folder.nothing_here(path)
    safetensors_index.header(path / WEIGHTS)


def base_of(path: Path) -> tuple[str, str | None]:
    """The base's ref and revision. Raises: CheckpointError: no base is named, or its path is
    relative or doesn't exist."""
    settings = folder.json_object(path / CONFIG)
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not name:
        raise CheckpointError(f"adapter {path} does not say what its base is: {MEND}")
    local = Path(name).expanduser()
    if local.is_absolute():
        if not local.exists():
            raise CheckpointError(f"adapter {path}: its base {name} is not there: {MEND}")
        return str(local), None
    if local.exists() or not hub.NAME.fullmatch(name):
        raise CheckpointError(
            f"adapter {path}: its base {name!r} is a relative path, which could mean another "
            f"folder tomorrow: write its absolute path as base_model_name_or_path in {CONFIG}"
        )
    return name, revision


def check_wearable(path: Path) -> None:
    """Check that the adapter can be attached to its base unmerged and removed again, which leaves
    the base unchanged.

    Raises: CheckpointError: it does more than add to linear layers inside the blocks.
    """
    settings = folder.json_object(path / CONFIG)
    odd = [name for name in OTHERWISE if settings.get(name)]
    odd += ["bias"] if settings.get("bias", "none") != "none" else []
    if (init := settings.get("init_lora_weights", True)) not in INITS:
        odd.append(f"init_lora_weights {init}")
    odd += [name for name in safetensors_index.header(path / WEIGHTS) if not LINEAR.fullmatch(name)]
    if odd:
        raise CheckpointError(
            f"adapter {path} can't be served beside its base ({odd[0]}): want plain LoRA on linear "
            "layers inside the blocks; merge it (load(), save_pretrained()) and serve that folder"
        )


def check_fits(path: Path, base: Path, config: "PreTrainedConfig") -> None:
    """Compare the adapter's header with what peft would build on the base, on the meta device.

    Names and shapes are compared, so two bases of the same architecture and size look the same.
    Raises: CheckpointError: the base lacks a module, or has it with another shape.
    """
    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    stored = {name: info.shape for name, info in safetensors_index.header(path / WEIGHTS).items()}
    try:
        with quiet(), torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config)
            settings = PeftConfig.from_pretrained(str(path))
            built = get_peft_model(plain, settings, low_cpu_mem_usage=True)  # type: ignore[arg-type]  # from_config is untyped
            wanted = get_peft_model_state_dict(built, save_embedding_layers=False)
            around = built.state_dict()  # a trained embedding may be stored whole
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"adapter {path} does not fit its base {base}: {' '.join(str(error).split())[:200]}; "
            f"{MEND}"
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in (around | wanted).items()}
    odd = sorted(
        [name for name in stored if stored[name] != shapes.get(name)]
        + [name for name in wanted if name not in stored]
    )
    if odd:
        first = odd[0]
        raise CheckpointError(
            f"adapter {path} does not fit its base {base}: {len(odd)} tensors differ, e.g. "
            f"{first.removeprefix('base_model.model.')} is {_shape(stored.get(first))} in the "
            f"adapter, {_shape(shapes.get(first))} on the base; {MEND}"
        )


def merge(model: "PreTrainedModel", path: Path) -> "PreTrainedModel":
    """The model with the adapter added into its weights: same class, same parameter names."""
    from peft import PeftModel

    with quiet():
        return PeftModel.from_pretrained(model, path).merge_and_unload()


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
