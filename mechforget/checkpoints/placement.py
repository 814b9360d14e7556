"""Where a model's weights are while it runs: on one device, on several, or on the disk.

`auto` fills the GPUs first, then memory, then the disk (accelerate's device_map). `disk` leaves
every block in the checkpoint's own safetensors files and reads it when it is needed: the CPU
computes with memory-mapped weights, so a forward pass reads each weight once and keeps none.
"""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig

SPREAD = ("auto", "disk")


def device_map(config: "PreTrainedConfig", device: str) -> "str | dict[str, str] | None":
    """The argument for `from_pretrained`; None if the whole model is in CPU memory. A GPU is loaded
    shard by shard, so the model needn't fit into CPU memory. `meta`: only names and shapes."""
    if device != "disk":
        return device if device in ("auto", "meta") or device.startswith("cuda") else None
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # accelerate's init_empty_weights would allocate each one first
        model: Any = AutoModelForCausalLM.from_config(config)
    block = re.compile(r"(.*?\.\d+)\.")  # model.layers.3.mlp.up_proj.weight -> model.layers.3
    parts = {
        found[1] if (found := block.match(name)) else name.rpartition(".")[0]: "disk"
        for name, _ in model.named_parameters(remove_duplicate=False)
    }
    paths = {id(module): name for name, module in model.named_modules()}
    # Some models look up the embedding's device, and accelerate wants one module in memory.
    held = [model.get_input_embeddings()]
    if config.get_text_config().tie_word_embeddings:
        held.append(model.get_output_embeddings())
    return parts | {paths[id(module)]: "cpu" for module in held}


def device_of(model: "nn.Module") -> "torch.device":
    """The device that a model expects its inputs on. Of an offloaded model: that on which its first
    weights are used."""
    import torch

    held = (p.device for p in model.parameters() if p.device.type != "meta")
    return next(held, torch.device("cpu"))


def tensor(module: "nn.Module", name: str) -> "torch.Tensor | None":
    """A module's parameter; if it is offloaded, it is read from there."""
    found = getattr(module, name, None)
    if found is None or found.device.type != "meta":
        return found
    hook: Any = getattr(module, "_hf_hook", None)
    return found if hook is None else hook.weights_map[name]  # without a hook: a plan's meta model
