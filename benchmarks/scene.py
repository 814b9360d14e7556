"""What the questions of a row are asked about: a pair, opened by each side, and its prompts."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

import mechforget as mf
from benchmarks.bound import Shape
from benchmarks.models import tokenizer
from benchmarks.prompts import Sequences, Tree
from mechforget.measures import Inputs
from mechforget.models import Loading
from mechforget.tasks import Task

DTYPE = "float32"  # in which both sides can be compared to many digits
OPEN = 4  # checkpoints of a peer that stay open


@dataclass(frozen=True)
class Scene:
    """quick: tiny models: smaller numbers of steps, too."""

    folders: tuple[Path, Path]
    task: Task
    device: str
    quick: bool = False

    @cached_property
    def tokenizer(self) -> Any:
        return tokenizer(self.folders[0])

    @cached_property
    def inputs(self) -> Inputs:
        """mechforget's side, after a first pass."""
        loading = Loading("transformer_lens", self.device, DTYPE)
        found = Inputs.of(mf.Pair(*self.folders), self.task, loading=loading)
        mf.measures.forgetting(found)
        return found

    @cached_property
    def sequences(self) -> Sequences:
        return Sequences.of(self.task, self.tokenizer)

    @cached_property
    def tree(self) -> Tree:
        return self.sequences.tree()

    @property
    def plain(self) -> list[Any]:
        """Hugging Face's models, with the attention that it chooses itself."""
        return [plain(folder, self.device) for folder in self.folders]

    @property
    def bridges(self) -> list[Any]:
        return [bridge(folder, self.device) for folder in self.folders]

    @cached_property
    def shape(self) -> Shape:
        from transformers import AutoConfig

        return Shape.of(AutoConfig.from_pretrained(self.folders[0]))


@lru_cache(OPEN)
def plain(folder: Path, device: str, attention: str = "sdpa") -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, DTYPE), attn_implementation=attention
    )
    return model.to(device).eval()


@lru_cache(OPEN)
def bridge(folder: Path, device: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    found = TransformerBridge.boot_transformers(
        str(folder), device=device, dtype=getattr(torch, DTYPE)
    )
    return found.eval()
