"""The settings of a training run. Everything else is transformers' default."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mechforget.errors import StudyError
from mechforget.training import places

Method = Literal["full", "lora"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """AdamW without weight decay; the gradient norm is clipped at 1, and the learning rate falls
    linearly to 0.

    method: "full" trains every weight, "lora" low-rank matrices beside them (Hu et al. 2021).
    steps: number of batches, drawn without replacement from shuffled epochs; the last batch of an
        epoch may be smaller. warmup_steps: over the first of them the learning rate rises from 0.
    seed: for the order of the data, dropout and LoRA's initialisation.
    heads: with method "full", train only the weights of these heads (L1H0, L2H3.vo; k and v are
        those of the head's group) and no others.
    rank, alpha, targets: for LoRA. By default 8, twice the rank, and every linear layer except the
        unembedding. If the base is an adapter, that adapter is trained further and keeps its own.
    Raises: StudyError: a value is out of range, or the method does not use it.
    """

    steps: int
    learning_rate: float
    method: Method = "full"
    batch_size: int = 16
    warmup_steps: int = 0
    seed: int = 0
    heads: tuple[str, ...] | None = None
    rank: int | None = None
    alpha: int | None = None
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise StudyError(f"method = {self.method!r}: want one of {', '.join(get_args(Method))}")
        for name in ("steps", "batch_size", "rank", "alpha"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise StudyError(f"{name} = {value}: want at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise StudyError(f"learning_rate = {self.learning_rate}: want more than 0, like 1e-4")
        if not 0 <= self.warmup_steps < self.steps:
            raise StudyError(
                f"warmup_steps = {self.warmup_steps}: want 0 to {self.steps - 1}, fewer than steps"
            )
        if not 0 <= self.seed < 2**32:
            raise StudyError(f"seed = {self.seed}: want 0 to 2**32 - 1")
        if self.targets is not None and not self.targets:
            raise StudyError("targets is empty: name modules, or leave it out for all linear ones")
        if self.heads is not None:
            if not self.heads:
                raise StudyError("heads is empty: name heads, or leave it out to train everything")
            places.heads(self.heads)
            if self.method != "full":
                raise StudyError("heads is for method = 'full': leave it out, or change method")
        for name in ("rank", "alpha", "targets"):
            if self.method == "full" and getattr(self, name) is not None:
                raise StudyError(f"{name} is for method = 'lora': leave it out, or change method")
