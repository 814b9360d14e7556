"""Gradient interference of the old and the new task: at pre, at post and, in one place, halfway."""

from typing import TYPE_CHECKING

from mechforget import measures
from mechforget.measures.interference import lacks_for_minibatches
from mechforget.study.job import BOTH, ONE, Job, Rehearsal, Scope, Work
from mechforget.study.scene import IN_MEMORY, NEW_TASK, Scene

if TYPE_CHECKING:
    import xarray as xr


def jobs(scope: Scope) -> list[Job]:
    # Two tasks, and the products of their gradients, at each point.
    n, where = (3, BOTH) if scope.spec.resident else (2, ONE)
    return [
        Job(
            "interference",
            _products,
            6 * n,
            where=where,
            held=True,
            across=False,
            by_cell=True,
            rehearse=_rehearse,
        )
    ]


def _products(work: Work) -> "xr.Dataset":
    path = (0.0, 1.0) if work.study.backend == "remote" else (0.0, 0.5, 1.0)
    new = work.on_new_task().encoded
    return measures.interference(work.pair, new=new, at=path, seed=work.study.seed)


def _rehearse(rehearsal: Rehearsal) -> None:
    from mechforget.sweeps.gram import products

    products(rehearsal.model, rehearsal.encoded, rehearsal.cells)


def lacks(scene: Scene) -> str:
    if not scene.served and not scene.spec.resident:
        return IN_MEMORY
    if why := scene.unsplit():
        return why
    if scene.study.new_task is None:
        return NEW_TASK
    if scene.served and scene.no_gradients:
        return scene.no_gradients
    if scene.new is None:
        return ""
    return lacks_for_minibatches(scene.pair.encoded, scene.new.encoded)


def notes(scope: Scope) -> list[str]:
    if scope.study.backend != "remote":
        return []
    return [
        "interference is not measured halfway between pre and post: that needs both checkpoints' "
        "weights on one machine"
    ]
