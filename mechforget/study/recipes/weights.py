"""Which weights changed: read from the checkpoints' files, without a model."""

from typing import TYPE_CHECKING

from mechforget import measures
from mechforget.measures.weights import lacks_for_streaming
from mechforget.study.job import BOTH, Job, Scope, Work
from mechforget.study.scene import BOTH as IN_ONE_PLACE
from mechforget.study.scene import Scene

if TYPE_CHECKING:
    import xarray as xr


def jobs(scope: Scope) -> list[Job]:
    return [Job("weights", _streamed, 2, where=BOTH)]  # reads them once, as a forward pass does


def _streamed(work: Work) -> "xr.Dataset":
    assert work.files is not None, "left out where the weights aren't on this machine"
    return measures.weights(work.files)


def lacks(scene: Scene) -> str:
    if scene.served:
        return IN_ONE_PLACE
    return next(filter(None, map(lacks_for_streaming, scene.files)), "")
