"""The prompts of a study: its task with few-shot examples, and a random draw of them."""

from typing import TYPE_CHECKING

import numpy as np

from mechforget import tasks
from mechforget.study.settings import Study

if TYPE_CHECKING:
    from mechforget.tasks import Task


def prompts(study: Study, source: str) -> "Task":
    """source: the study's task, or its new task.

    Raises: TaskError: the task cannot be read.
    """
    task = tasks.load(source, few_shot=study.few_shot, seed=study.seed)
    if study.prompts and study.prompts < len(task):
        rng = np.random.default_rng(study.seed)
        keep = np.isin(np.arange(len(task)), rng.permutation(len(task))[: study.prompts])
        task = task.select(
            keep, f"{study.prompts} of {len(task)} prompts drawn with seed {study.seed}"
        )
    return task
