"""The loss between the checkpoints and around them."""

from typing import TYPE_CHECKING

from mechforget import measures
from mechforget.errors import SweepError
from mechforget.measures.loss_surface import LINE
from mechforget.study.job import BOTH, Job, Rehearsal, Scope, Work
from mechforget.study.scene import BOTH as IN_ONE_PLACE
from mechforget.study.scene import IN_MEMORY, Scene
from mechforget.sweeps.curvature import require_curvature

if TYPE_CHECKING:
    import xarray as xr

CURVATURE = 60 * 8  # products with a Hessian, each eight forward passes or so


def jobs(scope: Scope) -> list[Job]:
    lines = {"landscape/line": _line}
    if scope.study.new_task:
        lines["landscape/line_new"] = _line_new
    found = [Job(name, run, len(LINE), where=BOTH, held=True) for name, run in lines.items()]
    # A step for every weight costs as much as two passes.
    found.append(Job("landscape/sharpness", _sharpness, 2 * 21 * 3, held=True))
    curvature = Job(
        "landscape/curvature", _curvature, 2 * CURVATURE, held=True, rehearse=_second_derivatives
    )
    return [*found, curvature]


def _line(work: Work) -> "xr.Dataset":
    return measures.loss_line(work.pair, seed=work.study.seed)


def _line_new(work: Work) -> "xr.Dataset":
    return measures.loss_line(work.on_new_task(), seed=work.study.seed)


def _sharpness(work: Work) -> "xr.Dataset":
    return measures.sharpness(work.pair, seed=work.study.seed)


def _curvature(work: Work) -> "xr.Dataset":
    return measures.curvature(work.pair, seed=work.study.seed)


def _second_derivatives(rehearsal: Rehearsal) -> None:
    import torch

    from mechforget.sweeps.curvature import hessian

    with hessian(rehearsal.model, rehearsal.encoded, [("attention", None)]) as (product, held):
        product(torch.cat([p.flatten() for p in held]))


def lacks(scene: Scene) -> str:
    if scene.served:
        return IN_ONE_PLACE
    if not scene.spec.resident:
        return IN_MEMORY
    try:
        require_curvature(scene.pair.post)
    except SweepError as error:
        return str(error)
    return ""
