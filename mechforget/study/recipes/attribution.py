"""Attribution patching, of the sites whose heads it can rank for a screen."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mechforget import measures
from mechforget.study.job import SENT, Job, Rehearsal, Scope, Work
from mechforget.study.scene import Scene
from mechforget.sweeps.donor import points
from mechforget.sweeps.plan import single

if TYPE_CHECKING:
    import xarray as xr

SCREENED = ("z", "head_out")


def jobs(scope: Scope) -> list[Job]:
    # Of each checkpoint: a pass forward, and for two metrics a pass back, as long as that.
    return [
        Job(
            f"attribution/{site}",
            _attributed(site),
            6,
            also=tuple(points(single(scope.spec, site))),
            where=SENT,
            held=True,
            across=False,
            rehearse=_gradients(site),
        )
        for site in [s for s in SCREENED if s in scope.study.sites] or ["head_out"]
    ]


def _attributed(site: str) -> "Callable[[Work], xr.Dataset]":
    return lambda work: measures.attribution(work.pair, site=site)


def _gradients(site: str) -> Callable[[Rehearsal], None]:
    def rehearse(rehearsal: Rehearsal) -> None:
        from mechforget.measures.attribution import POINT
        from mechforget.sweeps.gradients import gradients

        read = {(layer, POINT.get(site, site)) for layer in rehearsal.model.spec.at(site)}
        gradients(rehearsal.model, rehearsal.encoded, sorted(read))

    return rehearse


def lacks(scene: Scene) -> str:
    return scene.no_gradients
