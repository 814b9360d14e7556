"""mechforget: which heads, layers and experts carry what fine-tuning made a model forget.

compare, open_run        two checkpoints and a task in, a run out: verdict, tables, report
use                      backend, device and dtype, said once for a notebook
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
    "Run",
    "Sequence",
    "checkpoints",
    "compare",
    "measures",
    "models",
    "open_run",
    "statistics",
    "tasks",
    "training",
    "use",
]

if TYPE_CHECKING:
    from mechforget import checkpoints, measures, models, statistics, tasks, training
    from mechforget.checkpoints import Pair, Sequence
    from mechforget.measures.running import use
    from mechforget.runs import Run, compare, open_run

_FROM = {
    "Pair": "checkpoints",
    "Run": "runs",
    "Sequence": "checkpoints",
    "compare": "runs",
    "open_run": "runs",
    "use": "measures.running",
}


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(import_module(f"mechforget.{_FROM[name]}"), name)
    if name in __all__:
        return import_module(f"mechforget.{name}")
    raise AttributeError(
        f"module 'mechforget' has no attribute {name!r}: it has {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
