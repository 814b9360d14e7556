"""Forgetting of the old task, and what the new one gained."""

from mechforget import measures
from mechforget.study.job import Job, Scope


def jobs(scope: Scope) -> list[Job]:
    found = [Job("forgetting", lambda work: measures.forgetting(work.pair), 2)]
    if scope.study.new_task:
        new = Job("forgetting_new", lambda work: measures.forgetting(work.on_new_task()), 2)
        found.append(new)
    return found
