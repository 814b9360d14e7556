"""What a checkpoint is, however it is stored; pairs and sequences of them.

open(ref) -> Checkpoint; Pair(pre, post); Sequence([theta_0, ..., theta_T]); share(pre, post).
"""

from mechforget.checkpoints.checkpoint import Checkpoint, open
from mechforget.checkpoints.pair import Pair, Sequence
from mechforget.checkpoints.share import share

__all__ = ["Checkpoint", "Pair", "Sequence", "open", "share"]
