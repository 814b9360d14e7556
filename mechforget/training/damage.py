"""The kinds of planted damage: which slices of the weights each changes, and to what."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechforget.errors import StudyError
from mechforget.models.sites import PARAMETER
from mechforget.training.places import Place, experts, gate, unit, users

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from mechforget.models.nnsight import NNsight

KINDS = {  # -> the kinds of places that can be damaged so
    "scramble": ("head", "expert"),
    "rotate": ("head",),
    "compensate": ("head",),
    "overwrite": ("layer",),
    "redirect": ("layer",),
}


@dataclass(frozen=True)
class Damage:
    """One kind of damage at one place (`places.Place`), by an amount.

    scramble: permutes the entries of a head's W_Q, W_K, W_V, W_O, or of one expert's matrices, at
        random: W + amount · (permuted - W).
    rotate: rotates a head's q, k, v or z by amount · 90° in every plane of a random basis. Only its
        own matrix (and bias) changes, so what reads it can no longer interpret it.
    compensate: rotates a group's v in the same way, and rotates the W_O of all its heads back: the
        function doesn't change. (The same for q and k would work only without rotary positions and
        q/k norms, which nearly all families have.)
    overwrite: replaces every parameter of a layer's MLP (of a mixture also router and experts) by
        noise of the same norm: W + amount · (noise - W).
    redirect: permutes the rows of a mixture's router (weights and biases) in one cycle, so that
        each expert gets another expert's tokens: W + amount · (moved - W).
    k and v belong to a group: all its query heads are damaged.
    Raises: StudyError: the kind is unknown, the place is of another kind, or the amount isn't
        positive.
    """

    kind: str
    at: str
    amount: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise StudyError(f"damage {self.kind!r} is unknown; want one of {', '.join(KINDS)}")
        if Place.parse(self.at).sort not in KINDS[self.kind]:
            raise StudyError(f"{self.kind} {self.at}: want a {' or an '.join(KINDS[self.kind])}")
        if self.kind == "compensate" and "." in self.at:
            raise StudyError(f"compensate {self.at}: it takes v and o together: want a head alone")
        if not 0 < self.amount < math.inf:
            raise StudyError(f"amount {self.amount:g}: want a number above 0, like 1")


@dataclass(frozen=True)
class Target:
    """The slice that a damage changes. part: q, k, v or o of a head (for k and v: of a group), vo
    of a group, expert, or the mlp or gate of a layer. unit: number of the head, group or expert."""

    kind: str
    layer: int
    part: str
    unit: int
    amount: float

    def heads(self, model: "NNsight") -> list[int]:
        """The query heads that are damaged."""
        is_heads = self.part in PARAMETER or self.part == "vo"
        return users(model, self.unit, self.part[0]) if is_heads else []


def targets(model: "NNsight", damages: Iterable[Damage]) -> list[Target]:
    """The slices to change, each once, even if several heads that share it are named.

    Raises: StudyError: the layer is no mixture of experts, or has no such expert. SweepError: the
        backend can't access this matrix of the model's heads.
    """
    found: list[Target] = []
    for damage in damages:
        place = Place.parse(damage.at)
        if place.head is not None:
            for matrix in place.matrices:
                model.spec.require(PARAMETER[matrix])
            parts = [(m, unit(model, place.head, m)) for m in place.matrices]
            if damage.kind == "compensate":
                parts = [("vo", model.spec.group(place.head))]
        elif damage.kind == "overwrite":
            parts = [("mlp", 0)]
        else:
            _check_mixture(model, place, damage.at)
            parts = [("gate", 0) if place.expert is None else ("expert", place.expert)]
        found += [Target(damage.kind, place.layer, *part, damage.amount) for part in parts]
    return list(dict.fromkeys(found))


def _check_mixture(model: "NNsight", place: Place, name: str) -> None:
    moe = ", ".join(map(str, model.spec.moe)) or "none"
    if place.layer not in model.spec.moe:
        raise StudyError(f"{name}: layer {place.layer} is no mixture of experts; those are: {moe}")
    if place.expert is not None and place.expert >= model.spec.experts:
        raise StudyError(f"{name}: no such expert: want 0 to {model.spec.experts - 1}")


def changes(model: "NNsight", target: Target, seed: int) -> "Iterator[tuple[Tensor, Tensor]]":
    """Pairs of a view of a tensor and its new value. A target has its own random numbers, so they
    don't depend on what else is damaged."""
    random, amount, layer = _random(seed, target), target.amount, target.layer
    if target.kind == "overwrite":
        for weight in model.parameters("mlp", layer):
            yield weight, _towards(weight, _noise(weight, random), amount)
    elif target.kind == "redirect":
        cycle = _cycle(model.spec.experts, random)
        for rows in gate(model, layer):
            yield rows, _towards(rows, rows.double()[cycle], amount)
    elif target.part == "expert":
        for weight in experts(model, layer):
            mine = weight[target.unit]
            yield mine, _towards(mine, _permuted(mine, random), amount)
    elif target.kind == "scramble":
        weight, _ = model.weight(layer, PARAMETER[target.part], target.unit)
        yield weight, _towards(weight, _permuted(weight, random), amount)
    elif target.kind == "rotate":
        weight, bias = model.weight(layer, PARAMETER[target.part], target.unit)
        size = weight.shape[1 if target.part == "o" else 0]
        yield from _turned(weight, bias, target.part, _rotation(size, amount, random))
    else:
        weight, bias = model.weight(layer, "W_V", target.unit)
        rotation = _rotation(weight.shape[0], amount, random)
        yield from _turned(weight, bias, "v", rotation)
        for head in target.heads(model):
            yield from _turned(*model.weight(layer, "W_O", head), "o", rotation)


def _random(seed: int, target: Target) -> "Generator":
    import numpy as np
    import torch

    words = (target.kind, target.part, target.layer, target.unit)
    entropy = [seed, *(int.from_bytes(str(word).encode()) for word in words)]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def _towards(weight: "Tensor", other: "Tensor", amount: float) -> "Tensor":
    if amount == 1:  # exactly, without rounding
        return other
    return weight.double() + amount * (other.double() - weight.double())


def _permuted(weight: "Tensor", random: "Generator") -> "Tensor":
    import torch

    order = torch.randperm(weight.numel(), generator=random).to(weight.device)
    return weight.reshape(-1)[order].reshape(weight.shape)


def _noise(weight: "Tensor", random: "Generator") -> "Tensor":
    import torch

    noise = torch.randn(weight.shape, generator=random, dtype=torch.float64).to(weight.device)
    return noise * (weight.double().norm() / noise.norm())


def _cycle(n: int, random: "Generator") -> "Tensor":
    """A permutation in one cycle, so that no element keeps its place (except a single one)."""
    import torch

    order = torch.randperm(n, generator=random)
    cycle = torch.empty_like(order)
    cycle[order] = order.roll(1)
    return cycle


def _rotation(size: int, amount: float, random: "Generator") -> "Tensor":
    """A rotation by amount · 90° in each plane of a random basis; if the size is odd, one axis
    doesn't move."""
    import torch

    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.float64))
    angle, turn = amount * math.pi / 2, torch.eye(size, dtype=torch.float64)
    for i in range(0, size - 1, 2):
        turn[i, i] = turn[i + 1, i + 1] = math.cos(angle)
        turn[i, i + 1], turn[i + 1, i] = -math.sin(angle), math.sin(angle)
    return basis @ turn @ basis.T


def _turned(
    weight: "Tensor", bias: "Tensor | None", matrix: str, rotation: "Tensor"
) -> "Iterator[tuple[Tensor, Tensor]]":
    rotation = rotation.to(weight.device)
    yield weight, weight.double() @ rotation.T if matrix == "o" else rotation @ weight.double()
    if bias is not None:
        yield bias, rotation @ bias.double()
