"""Where a model's weights lie while it runs: on one device, over several, or on the disk.

`auto` fills the GPUs, then memory, then the disk (accelerate's device_map). `disk` leaves every
block where it is in the checkpoint's own safetensors and reads it when it is its turn: the CPU
computes on memory-mapped weights, so a forward pass reads each of them once and keeps none.
"""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig

SPREAD = ("auto", "disk")


def device_map(config: "PreTrainedConfig", device: str) -> "str | dict[str, str] | None":
    """What `from_pretrained` is given; None where the CPU holds all of the model. A GPU is loaded
    shard by shard: memory need not hold what the GPU does."""
    if device != "disk":
        return device if device == "auto" or device.startswith("cuda") else None
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # accelerate's init_empty_weights would make each in memory first
        model: Any = AutoModelForCausalLM.from_config(config)
    block = re.compile(r"(.*?\.\d+)\.")  # model.layers.3.mlp.up_proj.weight -> model.layers.3
    parts = {
        found[1] if (found := block.match(name)) else name.rpartition(".")[0]: "disk"
        for name, _ in model.named_parameters(remove_duplicate=False)
    }
    paths = {id(module): name for name, module in model.named_modules()}
    # Some models ask the embedding where it is; and accelerate wants one part to be in memory.
    held = [model.get_input_embeddings()]
    if config.get_text_config().tie_word_embeddings:
        held.append(model.get_output_embeddings())
    return parts | {paths[id(module)]: "cpu" for module in held}


def device_of(model: "nn.Module") -> "torch.device":
    """Where its inputs are expected: of an offloaded model, where its first weights are run."""
    import torch

    held = (p.device for p in model.parameters() if p.device.type != "meta")
    return next(held, torch.device("cpu"))


def tensor(module: "nn.Module", name: str) -> "torch.Tensor | None":
    """A module's parameter, read from where it is offloaded to if it is."""
    found = getattr(module, name, None)
    if found is None or found.device.type != "meta":
        return found
    hook: Any = getattr(module, "_hf_hook", None)
    return found if hook is None else hook.weights_map[name]  # without: a plan's model
