"""Erased or misread: probes of the residual stream."""

from typing import TYPE_CHECKING

from mechforget import measures
from mechforget.measures.drift import stream
from mechforget.measures.readout import lacks_for_probes
from mechforget.study.job import Job, Scope, Work
from mechforget.study.scene import Scene, too_short

if TYPE_CHECKING:
    import xarray as xr

NEUTRAL = 3000  # tokens of other text that a readout is aligned on


def jobs(scope: Scope) -> list[Job]:
    return [Job("readout", _probed, 2 + 2 * NEUTRAL / 400, also=tuple(stream(scope.spec)))]


def _probed(work: Work) -> "xr.Dataset":
    return measures.readout(work.pair, seed=work.study.seed)


def lacks(scene: Scene) -> str:
    return lacks_for_probes(scene.pair.encoded) or too_short(scene.pair)
