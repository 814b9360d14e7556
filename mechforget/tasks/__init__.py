"""Tasks: prompts with a right and a wrong answer, and where they come from."""

from mechforget.tasks.builtin import NAMES as BUILTIN
from mechforget.tasks.encoded import Encoded
from mechforget.tasks.sources import load
from mechforget.tasks.task import Task

__all__ = ["BUILTIN", "Encoded", "Task", "load"]
