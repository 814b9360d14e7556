"""The jobs of a study: those of its measures, in the order in which they are run."""

from mechforget.models.sites import Spec
from mechforget.study.catalogue import Entry, chosen, load
from mechforget.study.job import Job, Scope
from mechforget.study.settings import Study


def jobs(study: Study, spec: Spec, rows: int, tokens: int) -> list[Job]:
    """rows, tokens: of the task, encoded. The first measure of the catalogue comes first, then what
    costs least; what reads another result comes after it."""
    scope = Scope(study, spec, rows, tokens)
    first, *others = [_of(entry, scope) for entry in chosen(study.measures)] or [[]]
    waiting = sorted((job for some in others for job in some), key=lambda j: j.blocks(spec.layers))
    found, names = list(first), {job.name for some in (first, *others) for job in some}
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
