"""Direct logit attribution."""

from mechforget import measures
from mechforget.study.job import Job, Rehearsal, Scope
from mechforget.study.scene import Scene, no_such


def jobs(scope: Scope) -> list[Job]:
    name = "logit_attribution"
    return [Job(name, lambda w: measures.logit_attribution(w.pair), 2, rehearse=_attribute)]


def _attribute(rehearsal: Rehearsal) -> None:
    from mechforget.sweeps.direct import attribute

    attribute(rehearsal.model, rehearsal.encoded)


def lacks(scene: Scene) -> str:
    return "" if scene.spec.residual_scale is not None else no_such(scene.spec)
