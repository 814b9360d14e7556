"""From a study to a finished run: check the inputs, open the models, estimate the time, measure,
store."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mechforget import checkpoints
from mechforget.errors import StudyError, TaskError
from mechforget.measures import Inputs, forgetting
from mechforget.measures.similarity import paired
from mechforget.models import Loading
from mechforget.study.available import available, lacking
from mechforget.study.catalogue import chosen, names
from mechforget.study.estimate import estimate, omitted, shape
from mechforget.study.job import Job, Work
from mechforget.study.jobs import jobs
from mechforget.study.manifest import changed, check_completeness, describe
from mechforget.study.prompts import prompts
from mechforget.study.scene import Scene
from mechforget.study.settings import Study
from mechforget.study.so_far import so_far
from mechforget.study.store import Store, check_free

if TYPE_CHECKING:
    from mechforget.tasks import Task


def run(study: Study, out: Path, *, say: Callable[[str], None] = lambda line: None) -> Store:
    """Computes what the folder `out` does not hold yet. A finished run is only read.

    Everything that can be wrong with the inputs is found before `out` is made.
    Raises: MechforgetError: what is wrong, in one line.
    """
    settings, memory = study.model_dump(mode="json"), study.memory
    if (out / "manifest.json").is_file():
        store = Store(out, settings)
        if store.manifest.get("complete"):
            return store
        if store.begun():
            memory = store.manifest["memory"]
    else:
        check_free(out)
    pair = checkpoints.Pair(study.pre, study.post, weights=_here(study))
    pair.check()
    steps = _steps(study, pair)
    controls = _controls(study, pair)
    task = prompts(study, study.task)
    new_task = prompts(study, study.new_task) if study.new_task else None
    loading = Loading(study.backend, study.device, study.dtype, study.server, study.half_donors)
    on = partial(Inputs.of, loading=loading, memory=memory)
    task, uncorrupted = _corrupted(study, task, pair)
    task.encode(pair.pre.tokenizer())
    inputs = on(pair, task)
    on = partial(on, memory=inputs.memory)
    if study.only_known:
        task = _known(task, inputs)
        inputs = on(pair, task)
    others = {name: on(control, task) for name, control in controls.items()}
    new = None if new_task is None else on(pair, new_task)
    for step in steps:
        on(step, task)  # a model that can't be used is known before anything is measured
    files = (pair, *steps) if _here(study) else ()
    lacks = lacking(Scene(study, inputs, new, files, uncorrupted))
    study, left_out = available(study, inputs.post.spec, lacks)
    store = Store(out, settings)
    whole = jobs(study, inputs.post.spec, *shape(inputs))
    on_post = Work(
        study=study,
        pair=_kept(inputs, store, ""),
        new=None if new is None else _kept(new, store, "new"),
        controls={k: _kept(v, store, k) for k, v in others.items()},
        files=pair if _here(study) else None,
        shared=None if new_task is None else paired(task, new_task),
        get=store.get,
    )
    digests = _digests(pair, steps, controls)
    if not store.begun():
        describe(store, study, pair, task, new_task, inputs, left_out, digests)
    elif other := changed(store, digests, task, new_task):
        raise StudyError(f"{other} changed since {out} was begun: give another --out")
    _measure(whole[:1], whole, on_post, store, say)  # the first answer, before all that takes time
    check_completeness(store, study, inputs)
    views = [store.at(t) for t in range(1, store.checkpoints + 1)]
    waiting = [job for view in views for job in _waiting(whole, view)]
    estimate(waiting, omitted(study, inputs, lacks), inputs, say)
    _measure(whole, whole, on_post, store, say)
    for t, step in enumerate(steps, start=1):
        view = store.at(t)
        if not _waiting(whole, view):
            continue
        say(f"checkpoint {t} of {len(steps) + 1}: {study.between[t - 1]}")
        on_step = replace(
            on_post,
            pair=_kept(on(step, task), view, ""),
            new=None if new_task is None else _kept(on(step, new_task), view, "new"),
            controls={},
            files=step if _here(study) else None,
            get=view.get,
        )
        _measure(whole, whole, on_step, view, say)
    store.manifest["complete"] = True
    store.save()
    return store


def _waiting(whole: list[Job], view: Store) -> list[Job]:
    """The jobs that a checkpoint still lacks. Jobs of the whole run belong to post."""
    mine = [job for job in whole if not (view.prefix and job.once)]
    return [job for job in mine if not view.has(job.name)]


def _measure(
    some: list[Job], whole: list[Job], work: Work, store: Store, say: Callable[[str], None]
) -> None:
    """Those of some jobs that a checkpoint lacks; whole: all jobs that there are."""
    for job in _waiting(some, store):
        start = time.monotonic()
        store.put(job.name, job.run(work))
        seconds = store.manifest.setdefault("seconds", {})
        seconds[store.prefix + job.name] = round(time.monotonic() - start, 2)
        store.save()
        say(f"{job.name}: {time.monotonic() - start:.1f} s")
        waiting = [other.name for other in _waiting(whole, store)]
        if not store.prefix and (line := so_far(job.name, store, waiting)):
            say(line)


def _here(study: Study) -> bool:
    """Whether the weights are needed on this machine."""
    return study.backend != "remote"


def _steps(study: Study, pair: checkpoints.Pair) -> list[checkpoints.Pair]:
    """(pre, checkpoint) for each checkpoint between pre and post."""
    if not study.between:
        return []
    sequence = checkpoints.Sequence([pair.pre, *study.between, pair.post], weights=_here(study))
    sequence.check()
    return sequence.pairs()[:-1]


def _digests(
    pair: checkpoints.Pair, steps: list[checkpoints.Pair], controls: dict[str, checkpoints.Pair]
) -> dict[str, str]:
    named = {"pre": pair.pre, "post": pair.post}
    named |= {f"control_{name}": control.post for name, control in controls.items()}
    named |= {f"checkpoint {t}": step.post for t, step in enumerate(steps, start=1)}
    return {name: checkpoint.digest() for name, checkpoint in named.items()}


def _controls(study: Study, pair: checkpoints.Pair) -> dict[str, checkpoints.Pair]:
    found = {}
    if study.control_twin:
        found["twin"] = checkpoints.Pair(pair.post, study.control_twin, weights=_here(study))
    if study.control_old:
        found["old"] = checkpoints.Pair(pair.pre, study.control_old, weights=_here(study))
    for control in found.values():
        control.check()
    return found


def _corrupted(study: Study, task: "Task", pair: checkpoints.Pair) -> "tuple[Task, str]":
    """The task, with corrupted prompts if a measure compares them. If there are none and the study
    asked for all measures, also the reason why."""
    if not any(entry.corrupted for entry in chosen(study.measures)):
        return task, ""
    try:
        return task.counterparts(pair.pre.tokenizer()), ""
    except TaskError as error:
        if study.measures != names():
            raise
        return task, str(error)


def _known(task: "Task", inputs: Inputs) -> "Task":
    correct = forgetting(inputs).score.sel(metric="correct", at="pre").values == 1
    if correct.sum() < 2:
        raise StudyError(
            f"--only-known leaves {int(correct.sum())} of {len(task)} prompts: pre does not know "
            "this task; choose another, or give few-shot examples"
        )
    return task.select(
        correct, f"{int(correct.sum())} of {len(task)} prompts kept: pre answers them"
    )


def _kept(inputs: Inputs, store: Store, prefix: str) -> Inputs:
    for model in (inputs.pre, inputs.post):
        model.journal = store.path / "jobs.json"  # a client that dies finds its jobs again
    return replace(inputs, keep=lambda name: store.part(f"{prefix} {name}"))


def to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
