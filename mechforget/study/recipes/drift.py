"""Representational drift, and that of a seed twin."""

from mechforget import measures
from mechforget.measures.drift import stream
from mechforget.study.job import Job, Scope
from mechforget.study.scene import Scene, too_short


def jobs(scope: Scope) -> list[Job]:
    spec = scope.spec
    read = (*stream(spec), *((layer, "z") for layer in range(spec.layers)))
    found = [Job("drift", lambda work: measures.drift(work.pair), 2, also=read)]
    if scope.study.control_twin:
        twin = "control_twin/drift"
        found.append(Job(twin, lambda w: measures.drift(w.controls["twin"]), 2, once=True))
    return found


def lacks(scene: Scene) -> str:
    return too_short(scene.pair) or scene.unseen("resid_pre", "resid_post", "z", "head_out")
