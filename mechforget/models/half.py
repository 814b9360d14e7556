"""Half precision on a CPU that has no instructions for it: products are computed in float32.

Without such instructions, torch multiplies bfloat16 and float16 ten to a hundred times slower than
float32. A product computed in float32 and rounded once is what the instructions would give. Only a
slice of the weight is converted at a time, so that weights stay small, or memory-mapped.
"""

from typing import TYPE_CHECKING, Any

from mechforget.models.forward import replace_forward

if TYPE_CHECKING:
    from torch import Tensor, nn

COLUMNS = 2048  # of a weight, converted at once


def half_precision(model: "nn.Module") -> bool:
    """True if any of its weights are in half precision."""
    import torch

    return any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())


def slow(model: "nn.Module") -> bool:
    """True if the model multiplies in half precision on a CPU that has no instructions for it."""
    import torch

    on_cpu = all(p.device.type in ("cpu", "meta") for p in model.parameters())
    return half_precision(model) and on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def in_float32(model: "nn.Module") -> None:
    """Make every linear layer multiply in float32, in place."""
    for module in model.modules():
        if type(module).__name__ == "Linear":
            replace_forward(module, _linear)


def product(x: "Tensor", w: "Tensor") -> "Tensor":
    """x [..., in] @ w [in, out], rounded to x's dtype."""
    import torch

    if x.dtype.itemsize >= 4 or x.device.type != "cpu":
        return x @ w
    full = x.float()
    return torch.cat([(full @ part.float()).to(x.dtype) for part in w.split(COLUMNS, 1)], -1)


def _linear(self: Any, x: "Tensor") -> "Tensor":
    y = product(x, self.weight.T)
    return y if self.bias is None else y + self.bias
