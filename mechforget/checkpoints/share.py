"""Two models in little more than the memory of one: parameters that training didn't change are
stored once."""

from typing import TYPE_CHECKING

from mechforget.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn


def share(pre: "nn.Module", post: "nn.Module") -> list[str]:
    """Let `post` use `pre`'s memory for every parameter that is equal in both, bit for bit.

    From then on, an in-place change of a shared parameter changes both models.
    Returns: names of the parameters that differ, in the model's order; a tied matrix counts once.
    Raises: CheckpointError: parameters, shapes or dtypes of the two differ.
    """
    ours = dict(pre.named_parameters())
    theirs = dict(post.named_parameters())
    described = [
        {name: (tuple(p.shape), p.dtype, p.device) for name, p in params.items()}
        for params in (ours, theirs)
    ]
    if described[0] != described[1]:
        odd = min(name for name, _ in described[0].items() ^ described[1].items())
        raise CheckpointError(
            f"cannot share memory: {odd} differs in shape, dtype or device; load both from one "
            f"pair, with the same dtype and device"
        )
    differ = []
    for name, parameter in theirs.items():
        if _same_bits(ours[name].data, parameter.data):
            parameter.data = ours[name].data
        else:
            differ.append(name)
    return differ


def _same_bits(a: "torch.Tensor", b: "torch.Tensor") -> bool:
    """-0.0 is not 0.0 here, and a NaN equals itself."""
    import torch

    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))
