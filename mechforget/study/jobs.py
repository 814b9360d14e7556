"""The jobs of a study, in the order in which they are run."""

from mechforget.models.sites import Spec
from mechforget.study.catalogue import Entry, chosen, load
from mechforget.study.job import Job, Scope
from mechforget.study.settings import Study


def jobs(study: Study, spec: Spec, fed: int, tokens: int) -> list[Job]:
    """fed, tokens: see `Scope`. The forgetting is measured first, then the
    cheapest job; a job that reads another's result is run after it."""
    scope = Scope(study, spec, fed, tokens)
    first, *others = [_of(entry, scope) for entry in chosen(study.measures)]
    waiting = sorted((job for some in others for job in some), key=lambda j: j.blocks(spec.layers))
    found, names = list(first), {job.name for job in (*first, *waiting)}
    while waiting:
        done = {job.name for job in found}
        ready = next(j for j in waiting if not (names.intersection(j.after) - done))
        waiting.remove(ready)
        found.append(ready)
    return found


def _of(entry: Entry, scope: Scope) -> list[Job]:
    if entry.jobs:
        return load(entry.jobs)(scope)
    return [Job(entry.name, lambda work: load(entry.measure)(work.pair), 2)]
