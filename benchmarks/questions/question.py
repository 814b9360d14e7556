"""A question, and how two answers are compared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.rounds import Agreement, Peer
from benchmarks.scene import DTYPE, Scene


@dataclass(frozen=True)
class Question:
    """ours: mechforget's models are open before it is called. flops: the least, None where it isn't
    counted; bytes: the least that is read."""

    ours: Callable[[], Any]
    peers: list[Peer]
    flops: float | None = None
    bytes: float | None = None


def difference(ours: Any, theirs: Any, unit: str = "nats", note: str = "") -> Agreement:
    """The largest, where both have a number, and beside it the largest value of theirs."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        raise ValueError(f"ours is {ours.shape}, theirs {theirs.shape}")
    both = np.isfinite(ours) & np.isfinite(theirs)
    if not both.any():
        raise ValueError("nothing to compare: no place has a number on both sides")
    value = float(abs(ours - theirs)[both].max())
    return Agreement("largest difference", value, float(abs(theirs[both]).max()), unit, note)


def weights_once(scene: Scene) -> float:
    """Bytes of the weights of both checkpoints."""
    return 2.0 * scene.shape.weights() * torch.finfo(getattr(torch, DTYPE)).bits / 8
