"""Names of places in a model, such as L2H1.v, and the parts of tensors that they stand for."""

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechforget.checkpoints.families import STANDARD
from mechforget.checkpoints.quiet import quiet
from mechforget.errors import StudyError
from mechforget.models.sites import PARAMETER

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig

    from mechforget.models.nnsight import NNsight

NAME = re.compile(r"L(?P<layer>\d+)(H(?P<head>\d+)(\.(?P<matrices>[qkvo]+))?|E(?P<expert>\d+))?")


@dataclass(frozen=True)
class Place:
    """A layer (L3), one of its experts (L3E1), or a query head (L2H1), which stands for its four
    matrices, or for some of q, k, v, o if they are named (L2H1.qk)."""

    layer: int
    head: int | None = None
    expert: int | None = None
    matrices: str = ""

    @classmethod
    def parse(cls, name: str) -> "Place":
        """Raises: StudyError: the name isn't of this form."""
        found = NAME.fullmatch(name)
        if found is None:
            raise StudyError(
                f"place {name!r}: want a layer (L3), an expert (L3E1), or a head and maybe its "
                "matrices (L2H1, L2H1.qk)"
            )
        layer, head, expert = (
            None if found[part] is None else int(found[part])
            for part in ("layer", "head", "expert")
        )
        assert layer is not None  # or it wouldn't match
        matrices = "" if head is None else "".join(dict.fromkeys(found["matrices"] or PARAMETER))
        return cls(layer, head, expert, matrices)

    @property
    def sort(self) -> str:
        return "head" if self.head is not None else "layer" if self.expert is None else "expert"

    def check(self, config: "PreTrainedConfig") -> None:
        """Raises: StudyError: according to its config this model has no such layer or head."""
        text: Any = config.get_text_config()
        for what, number, n in (
            ("layer", self.layer, text.num_hidden_layers),
            ("head", self.head, text.num_attention_heads),
        ):
            if number is not None and number >= n:
                raise StudyError(f"no {what} {number}: this model has {what}s 0 to {n - 1}")


def heads(names: Iterable[str]) -> list[Place]:
    """Raises: StudyError: a name doesn't stand for a head."""
    places = {name: Place.parse(name) for name in names}
    for name, place in places.items():
        if place.head is None:
            raise StudyError(f"{name} is not a head: want one like L2H1 or L2H1.v")
    return list(places.values())


def sharing(hf_model: "nn.Module") -> "NNsight":
    """A proven model that shares its tensors with `hf_model`: what is written to its slices is
    written there. The modules of `hf_model` don't change.

    Raises: ModelError: this architecture cannot be read.
    """
    from mechforget.models.nnsight import NNsight
    from mechforget.models.opening import proven

    held = [*hf_model.parameters(), *hf_model.buffers()]
    with quiet():
        found = proven(copy.deepcopy(hf_model, {id(tensor): tensor for tensor in held}), "nnsight")
    assert isinstance(found, NNsight)
    return found


def unit(model: "NNsight", head: int, matrix: str) -> int:
    """The number of the slice of a matrix (q, k, v, o) that a query head uses: its own number, or
    its group's."""
    return model.spec.group(head) if matrix in "kv" else head


def users(model: "NNsight", unit_: int, matrix: str) -> list[int]:
    """The query heads that use this slice."""
    return [head for head in range(model.spec.heads) if unit(model, head, matrix) == unit_]


def experts(model: "NNsight", layer: int) -> "list[Tensor]":
    """The matrices (and biases) of a layer's experts, each [expert, ...]."""
    module = model.module.get_submodule(model.modules.layers[layer].experts)
    stacked = list(module.parameters())
    if not stacked or any(p.shape[0] != model.spec.experts for p in stacked):
        raise StudyError(f"the experts of a {model.family} model are not one stack of matrices")
    return stacked


def gate(model: "NNsight", layer: int) -> "list[Tensor]":
    """The tensors that choose a layer's experts: the router's weights and biases, [expert, ...]."""
    n, found = model.spec.experts, model.modules.layers[layer]
    routers = [
        module
        for path, module in model.module.named_modules()
        if path.startswith(found.mlp)
        and any(part in STANDARD.router for part in path.split("."))
        and any(p.shape == (n, model.spec.d_model) for p in module.parameters(recurse=False))
    ]
    if len(routers) != 1:
        raise StudyError(f"cannot find the router of layer {layer} of a {model.family} model")
    tensors = (*routers[0].parameters(recurse=False), *routers[0].buffers(recurse=False))
    return [tensor for tensor in tensors if tensor.ndim and tensor.shape[0] == n]


def located(hf_model: "nn.Module", view: "Tensor") -> "tuple[str, Tensor]":
    """The name of the tensor that a view belongs to, and a bool mask of its entries in it."""
    import torch

    for name, whole in (*hf_model.named_parameters(), *hf_model.named_buffers()):
        start = view.storage_offset() - whole.storage_offset()
        same = whole.untyped_storage().data_ptr() == view.untyped_storage().data_ptr()
        if same and 0 <= start < whole.numel():
            mask = torch.empty_strided(whole.size(), whole.stride(), dtype=torch.bool).zero_()
            mask.as_strided(view.size(), view.stride(), start).fill_(True)
            return name, mask.to(whole.device)
    raise AssertionError("a slice that is a copy, not a view")
