"""The jobs of a study, in the order in which they are run."""

from mechforget.models.sites import Spec
from mechforget.study.catalogue import Entry, chosen, early, load
from mechforget.study.job import Job, Scope
from mechforget.study.settings import Study


def jobs(study: Study, spec: Spec, fed: int, tokens: int) -> list[Job]:
    """fed, tokens: see `Scope`. First come the early results, which the verdict reads, then all
    others. Of both the cheapest is made first (so the forgetting is the first of all), and a job
    that reads another's result is run after it."""
    scope, soon = Scope(study, spec, fed, tokens), early()
    every = [job for entry in chosen(study.measures) for job in _of(entry, scope)]
    waiting = sorted(every, key=lambda job: (job.name not in soon, job.blocks(spec.layers)))
    names = {job.name for job in every}
    found: list[Job] = []
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
