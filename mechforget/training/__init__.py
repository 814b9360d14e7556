"""Continual fine-tuning: one task from one checkpoint, or several in order, with the score matrix.

finetune(base, task, out, settings); train("SEQUENCE.toml"); score(checkpoint, tasks).
plant(pre, out, [Damage("scramble", "L2H1.v")]): a checkpoint that is broken in known places.
"""

from mechforget.training.damage import Damage
from mechforget.training.finetune import finetune
from mechforget.training.plant import plant, planted
from mechforget.training.score import score
from mechforget.training.sequence import train
from mechforget.training.settings import Settings

__all__ = ["Damage", "Settings", "finetune", "plant", "planted", "score", "train"]
