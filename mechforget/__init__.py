"""mechforget: which heads, layers and experts carry what fine-tuning made a model forget.

Pair, Sequence           checkpoints that belong together
tasks.load               prompts with a right and a wrong answer
measures.*               a pair and a task in, labelled arrays out
statistics.*             intervals, tests, noise floor
training.*               continual fine-tuning
Everything loads on first use: `import mechforget` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Pair",
    "Sequence",
    "checkpoints",
    "measures",
    "models",
    "statistics",
    "tasks",
    "training",
]

if TYPE_CHECKING:
    from mechforget import checkpoints, measures, models, statistics, tasks, training
    from mechforget.checkpoints import Pair, Sequence


def __getattr__(name: str) -> Any:
    if name in ("Pair", "Sequence"):
        return getattr(import_module("mechforget.checkpoints"), name)
    if name in __all__:
        return import_module(f"mechforget.{name}")
    raise AttributeError(f"module 'mechforget' has no attribute {name!r}")
