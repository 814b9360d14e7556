"""Half precision on a CPU that has no instructions for it: products are made in float32.

torch multiplies bfloat16 and float16 without them some ten to a hundred times slower than float32.
A product made in float32 and rounded once is what they would give; a slice of the weight at a time
is converted, so weights stay as small, or as memory-mapped, as they are.
"""

from typing import TYPE_CHECKING, Any

from mechforget.models.forward import replace_forward

if TYPE_CHECKING:
    from torch import Tensor, nn

COLUMNS = 2048  # of a weight, converted at once


def coarse(model: "nn.Module") -> bool:
    """Whether it holds weights in half precision."""
    import torch

    return any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())


def slow(model: "nn.Module") -> bool:
    """Whether this model multiplies halves on a CPU without instructions for them."""
    import torch

    on_cpu = all(p.device.type in ("cpu", "meta") for p in model.parameters())
    return coarse(model) and on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def in_float32(model: "nn.Module") -> None:
    """Every linear layer's products, in place."""
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
