"""Routing of a mixture of experts, and what the other checkpoint's routing restores."""

from mechforget import measures
from mechforget.models.sites import Edit
from mechforget.study.job import Job, Scope, swept
from mechforget.study.scene import Scene
from mechforget.sweeps.plan import single


def jobs(scope: Scope) -> list[Job]:
    spec = scope.spec
    if not spec.moe:
        return []
    gates = tuple((layer, "gate") for layer in spec.moe)
    routers = (*single(spec, "router"), tuple(Edit(at, "router") for at in spec.moe))
    return [
        Job("routing", lambda work: measures.routing(work.pair), 2, also=gates),
        swept("routing_restored", lambda w: measures.routing_restored(w.pair), routers),
    ]


def lacks(scene: Scene) -> str:
    if scene.spec.moe:
        return ""
    why = f": {scene.unsplit()}" if scene.unsplit() else ", it is dense"
    return f"a {scene.spec.family} model shows no mixture of experts{why}"
