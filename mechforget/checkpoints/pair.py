"""Checkpoints that belong together: a pair (pre, post), or a sequence θ₀ … θ_T."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mechforget.checkpoints.checkpoint import Checkpoint, open
from mechforget.checkpoints.differences import differences
from mechforget.errors import CheckpointError

Ref = str | Path | Checkpoint


@dataclass(frozen=True, init=False)
class Pair:
    """Before and after fine-tuning. weights: False for a pair that runs on a server.

    Raises: CheckpointError: either cannot be opened.
    """

    pre: Checkpoint
    post: Checkpoint

    def __init__(self, pre: Ref, post: Ref, *, weights: bool = True) -> None:
        object.__setattr__(self, "pre", open(pre, weights=weights))
        object.__setattr__(self, "post", open(post, weights=weights))

    def check(self) -> None:
        """Check that both have the same architecture, tensors, vocabulary, tokenizer and config.

        Weights are not read.
        Raises: CheckpointError: all that differs, in one line; or what is wrong with one of them.
        """
        _belong("pre", self.pre, "post", self.post)


@dataclass(frozen=True, init=False)
class Sequence:
    """θ₀ before any task, θ_t after task t. Raises: CheckpointError: fewer than two, or one that
    cannot be opened."""

    checkpoints: tuple[Checkpoint, ...]

    def __init__(self, checkpoints: Iterable[Ref], *, weights: bool = True) -> None:
        opened = tuple(open(ref, weights=weights) for ref in checkpoints)
        if len(opened) < 2:
            raise CheckpointError(
                f"a sequence of {len(opened)} checkpoints: want at least two, θ₀ first"
            )
        object.__setattr__(self, "checkpoints", opened)

    def check(self) -> None:
        """Check every checkpoint against the first. Raises: CheckpointError: as `Pair.check`."""
        first, *rest = self.checkpoints
        for t, checkpoint in enumerate(rest, start=1):
            _belong("checkpoint 0", first, f"checkpoint {t}", checkpoint)

    def pairs(self) -> list[Pair]:
        """(θ₀, θ_t) for t = 1 … T."""
        first, *rest = self.checkpoints
        return [Pair(first, checkpoint) for checkpoint in rest]


def _belong(name: str, pre: Checkpoint, other: str, post: Checkpoint) -> None:
    pre.check()
    post.check()
    if found := differences(pre, post):
        raise CheckpointError(
            f"{name} ({pre.ref}) and {other} ({post.ref}) are not a pair: {'; '.join(found)}; "
            f"want {other} trained from {name}"
        )
