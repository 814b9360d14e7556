"""How alike the old and the new task are."""

from typing import TYPE_CHECKING

from mechforget import measures
from mechforget.measures.drift import stream
from mechforget.study.job import Job, Scope, Work
from mechforget.study.scene import NEW_TASK, Scene, too_short

if TYPE_CHECKING:
    import xarray as xr


def jobs(scope: Scope) -> list[Job]:
    return [Job("similarity", _compared, 2, also=tuple(stream(scope.spec)))]


def _compared(work: Work) -> "xr.Dataset":
    other = work.on_new_task().encoded
    return measures.similarity(work.pair, other=other, pairs=work.shared)


def lacks(scene: Scene) -> str:
    if scene.study.new_task is None:
        return NEW_TASK
    if scene.new is None:
        return ""
    few = "needs two distinct prompts of each task" * (scene.fewest < 2)
    return few or too_short(scene.pair) or too_short(scene.new)
