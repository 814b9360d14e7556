"""Continual fine-tuning: one task from one checkpoint, or several in order, with the score matrix.

finetune(base, task, out, settings); train("SEQUENCE.toml"); score(checkpoint, tasks).
"""

from mechforget.training.finetune import finetune
from mechforget.training.score import score
from mechforget.training.sequence import train
from mechforget.training.settings import Settings

__all__ = ["Settings", "finetune", "score", "train"]
