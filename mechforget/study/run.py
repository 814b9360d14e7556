"""From a study to a finished run: check the inputs, open the models, estimate the time, measure,
store."""

import datetime
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget import __version__, checkpoints
from mechforget.errors import StudyError, TaskError
from mechforget.measures import Inputs, forgetting
from mechforget.measures.patching import completeness
from mechforget.measures.similarity import paired
from mechforget.models import Loading
from mechforget.study.available import available, lacking
from mechforget.study.catalogue import chosen, names
from mechforget.study.job import Job, Work
from mechforget.study.jobs import jobs
from mechforget.study.prompts import prompts
from mechforget.study.scene import Scene
from mechforget.study.settings import Study
from mechforget.study.store import SHOWN, Store, check_free
from mechforget.sweeps.donor import Donor
from mechforget.sweeps.plan import Plan, single
from mechforget.sweeps.run import sweep

if TYPE_CHECKING:
    from mechforget.tasks import Task

VERSIONS = (
    "torch",
    "transformers",
    "transformer_lens",
    "nnsight",
    "numpy",
    "scipy",
    "xarray",
    "zarr",
)


def run(study: Study, out: Path, *, say: Callable[[str], None] = lambda line: None) -> Store:
    """Computes what the folder `out` does not hold yet. A finished run is only read.

    Everything that can be wrong with the inputs is found before `out` is made.
    Raises: MechforgetError: what is wrong, in one line.
    """
    settings = study.model_dump(mode="json")
    if (out / "manifest.json").is_file():
        store = Store(out, settings)
        if store.manifest.get("complete"):
            return store
    else:
        check_free(out)
    pair = checkpoints.Pair(study.pre, study.post, weights=_here(study))
    pair.check()
    steps = _steps(study, pair)
    controls = _controls(study, pair)
    task = prompts(study, study.task)
    new_task = prompts(study, study.new_task) if study.new_task else None
    loading = Loading(study.backend, study.device, study.dtype, study.server, study.half_donors)
    on = partial(Inputs.of, loading=loading, memory=study.memory)
    task, uncorrupted = _corrupted(study, task, pair)
    task.encode(pair.pre.tokenizer())
    inputs = on(pair, task)
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
    whole = jobs(study, inputs.post.spec, *inputs.encoded.ids.shape)
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
    if "checks" not in store.manifest:
        _describe(store, study, pair, task, new_task, inputs, left_out, digests)
    elif changed := _changed(store, digests, task, new_task):
        raise StudyError(f"{changed} changed since {out} was begun: give another --out")
    views = [store.at(t) for t in range(1, store.checkpoints + 1)]
    waiting = [job for view in views for job in _waiting(whole, view)]
    _estimate(waiting, _omitted(study, inputs, lacks), inputs, say)
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
        _measure(whole, on_step, view, say)
    _measure(whole, on_post, store, say)
    store.manifest["complete"] = True
    store.save()
    return store


def _waiting(whole: list[Job], view: Store) -> list[Job]:
    """The jobs that a checkpoint still lacks. Jobs of the whole run belong to post."""
    mine = [job for job in whole if not (view.prefix and job.once)]
    return [job for job in mine if not view.has(job.name)]


def _measure(whole: list[Job], work: Work, store: Store, say: Callable[[str], None]) -> None:
    for job in _waiting(whole, store):
        start = time.monotonic()
        store.put(job.name, job.run(work))
        seconds = store.manifest.setdefault("seconds", {})
        seconds[store.prefix + job.name] = round(time.monotonic() - start, 2)
        store.save()
        say(f"{job.name}: {time.monotonic() - start:.1f} s")


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


def _describe(
    store: Store,
    study: Study,
    pair: checkpoints.Pair,
    task: "Task",
    new_task: "Task | None",
    inputs: Inputs,
    left_out: list[str],
    digests: dict[str, str],
) -> None:
    """Writes what the numbers are made from into the manifest, before the first of them."""
    from importlib.metadata import version

    proofs = [
        (f"{p.name} ({which})", p)
        for which in ("pre", "post")
        for p in getattr(inputs, which).proofs
    ]
    spec = inputs.post.spec
    dtype = inputs.post.dtype
    if dtype != study.dtype:
        left_out = [*left_out, f"arithmetic is {dtype}: the server's choice, not --dtype's"]
    tokens = pair.pre.tokenizer()
    encoded = inputs.encoded
    store.manifest |= {
        "mechforget": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in VERSIONS},
        "dtype": dtype,
        "digests": digests,
        "commit": _commit(),
        "model": {
            "name": spec.family,
            "layers": spec.layers,
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "d_model": spec.d_model,
            "experts": spec.experts,
        },
        "notes": [*task.notes, *encoded.notes, *left_out],
        "checks": [
            *({"name": name, "pass": p.passed, "detail": p.detail} for name, p in proofs),
            *_complete(inputs, study),
        ],
        "prompts": _prompts(task),
        "new_prompts": _prompts(new_task),
        "tokens": [
            [tokens.decode([i]) for i in encoded.ids[row, : encoded.length[row]]]
            for row in encoded.first_rows[:SHOWN]
        ],
    }
    store.save()


def _complete(inputs: Inputs, study: Study) -> list[dict[str, Any]]:
    if not inputs.post.spec.resident:  # nothing can be lent
        return []
    gap = completeness(inputs)
    return [
        {
            "name": "pre's last residual, final norm and unembedding restore 100 %",
            "pass": gap < (1e-3 if study.dtype == "float32" else 0.1),
            "detail": f"largest gap {gap:.1e} nats",
        }
    ]


def _changed(store: Store, digests: dict[str, str], task: "Task", new_task: "Task | None") -> str:
    """Names what is no longer the same as when the interrupted run was started."""
    was = store.manifest
    names = [name for name, digest in digests.items() if was["digests"].get(name) != digest]
    names += ["the task"] * (was["prompts"] != _prompts(task))
    names += ["the new task"] * (was.get("new_prompts", []) != _prompts(new_task))
    return ", ".join(names)


def _prompts(task: "Task | None") -> list[dict[str, Any]]:
    if task is None:
        return []
    columns = [c for c in ("prompt", "answer", "wrong", "subject", "template") if c in task.rows]
    return json.loads(str(task.rows[columns].to_json(orient="records")))


def _commit() -> str | None:
    """The commit of the checkout that mechforget runs from, if there is one."""
    import subprocess

    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _omitted(study: Study, inputs: Inputs, lacks: dict[str, str]) -> list[Job]:
    """The jobs of all measures that this pair supports and the study does not make."""
    spec, shape = inputs.post.spec, inputs.encoded.ids.shape
    every, _ = available(study.model_copy(update={"measures": names()}), spec, lacks)
    mine = {job.name for job in jobs(study, spec, *shape)}
    return [job for job in jobs(every, spec, *shape) if job.name not in mine]


def _estimate(
    todo: list[Job], omitted: list[Job], inputs: Inputs, say: Callable[[str], None]
) -> None:
    """Says how long each job will take, and how long those would take that are left out. A small
    sweep is timed for this."""
    if not todo:
        return
    few = inputs.encoded.subset(np.arange(min(8, inputs.encoded.n_prompts)))
    layers, variants = inputs.post.spec.layers, single(inputs.post.spec, "resid_pre")
    donor, own = (Donor.of(m, few, variants) for m in (inputs.pre, inputs.post))
    start = time.monotonic()
    sweep(inputs.post, few, donor, variants, own=own)
    blocks = Plan.of(variants).layer_runs(layers)
    per_block = (time.monotonic() - start) / blocks / few.ids.size
    seconds: dict[str, float] = defaultdict(float)
    for job in todo:
        seconds[job.name] += job.blocks(layers) * per_block * inputs.encoded.ids.size
    parts = ", ".join(f"{name} {_time(s)}" for name, s in seconds.items() if s >= 1)
    say(f"estimated: {_time(sum(seconds.values()))} in all ({parts or 'each under a second'})")
    if omitted:
        each = per_block * inputs.encoded.ids.size
        costs = ", ".join(f"{n.name} {_time(n.blocks(layers) * each)}" for n in omitted)
        say(f"not among the measures: {costs}; --measures all runs them too")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
