"""From a study to a finished run: check, open, estimate, measure, keep."""

import datetime
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget import __version__, checkpoints, tasks
from mechforget.errors import StudyError
from mechforget.measures import Inputs, forgetting
from mechforget.measures.attention_change import first_rows, patterns
from mechforget.measures.patching import completeness
from mechforget.models import Loading
from mechforget.study.jobs import Job, jobs, served
from mechforget.study.settings import Study
from mechforget.study.store import Store, check_free

if TYPE_CHECKING:
    from mechforget.tasks import Task

SHOWN = 12  # prompts whose attention the report holds
VERSIONS = ("torch", "transformers", "transformer_lens", "numpy", "scipy", "xarray", "zarr")


def run(study: Study, out: Path, *, say: Callable[[str], None] = lambda line: None) -> Store:
    """Runs what `out` does not hold yet; a finished run is only read.

    All that can be wrong is found before `out` is made.
    Raises: MechforgetError: one line.
    """
    settings = study.model_dump(mode="json")
    if (out / "manifest.json").is_file():
        store = Store(out, settings)
        if store.manifest.get("complete"):
            return store
    else:
        check_free(out)
    pair = checkpoints.Pair(study.pre, study.post)
    pair.check()
    controls = _controls(study, pair)
    task = _task(study, study.task)
    new_task = _task(study, study.new_task) if study.new_task else None
    loading = Loading(study.backend, study.device, study.dtype)
    if "clean_corrupt" in study.measures:
        task = task.counterparts(pair.pre.tokenizer())
    task.encode(pair.pre.tokenizer())
    inputs = Inputs.of(pair, task, loading=loading, memory=study.memory)
    if study.only_known:
        task = _known(task, inputs)
        inputs = Inputs.of(pair, task, loading=loading, memory=study.memory)
    others = {
        name: Inputs.of(control, task, loading=loading, memory=study.memory)
        for name, control in controls.items()
    }
    new = None
    if new_task is not None:
        new = Inputs.of(pair, new_task, loading=loading, memory=study.memory)
    study, left_out = served(study, inputs)
    store = Store(out, settings)
    parted = {k: _kept(v, store, k) for k, v in others.items()}
    todo = jobs(
        study, _kept(inputs, store, ""), None if new is None else _kept(new, store, "new"), parted
    )
    todo = [job for job in todo if not store.has(job.name)]
    if "checks" not in store.manifest:
        _describe(store, study, pair, task, inputs, left_out)
    elif changed := _changed(store, pair, task):
        raise StudyError(f"{changed} changed since {out} was begun: give another --out")
    _estimate(todo, inputs, say)
    for job in todo:
        start = time.monotonic()
        store.put(job.name, job.run(store.get))
        store.manifest.setdefault("seconds", {})[job.name] = round(time.monotonic() - start, 2)
        store.save()
        say(f"{job.name}: {time.monotonic() - start:.1f} s")
    if "attention_change" in study.measures and not store.has("patterns"):
        store.put("patterns", _patterns(inputs))
    store.manifest["complete"] = True
    store.save()
    return store


def _controls(study: Study, pair: checkpoints.Pair) -> dict[str, checkpoints.Pair]:
    found = {}
    if study.control_twin:
        found["twin"] = checkpoints.Pair(pair.post, study.control_twin)
    if study.control_old:
        found["old"] = checkpoints.Pair(pair.pre, study.control_old)
    for control in found.values():
        control.check()
    return found


def _task(study: Study, source: str) -> "Task":
    task = tasks.load(source, few_shot=study.few_shot, seed=study.seed)
    if study.prompts and study.prompts < len(task):
        rng = np.random.default_rng(study.seed)
        keep = np.isin(np.arange(len(task)), rng.permutation(len(task))[: study.prompts])
        task = task.select(
            keep, f"{study.prompts} of {len(task)} prompts drawn with seed {study.seed}"
        )
    return task


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
    from dataclasses import replace

    return replace(inputs, keep=lambda name: store.part(f"{prefix} {name}"))


def _describe(
    store: Store,
    study: Study,
    pair: checkpoints.Pair,
    task: "Task",
    inputs: Inputs,
    left_out: list[str],
) -> None:
    """What the numbers were made from: into the manifest, before the first of them."""
    from importlib.metadata import version

    gap = completeness(inputs)
    proofs = [
        (f"{p.name} ({which})", p)
        for which in ("pre", "post")
        for p in getattr(inputs, which).proofs
    ]
    spec = inputs.post.spec
    tokens = pair.pre.tokenizer()
    encoded = inputs.encoded
    store.manifest |= {
        "mechforget": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in VERSIONS},
        "digests": {which: getattr(pair, which).digest() for which in ("pre", "post")},
        "commit": _commit(),
        "model": {
            "name": spec.family,
            "layers": spec.layers,
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "d_model": spec.d_model,
        },
        "notes": [*task.notes, *encoded.notes, *left_out],
        "checks": [
            *({"name": name, "pass": p.passed, "detail": p.detail} for name, p in proofs),
            {
                "name": "pre's last residual, final norm and unembedding restore 100 %",
                "pass": gap < (1e-3 if study.dtype == "float32" else 0.1),
                "detail": f"largest gap {gap:.1e} nats",
            },
        ],
        "prompts": _prompts(task),
        "tokens": [
            [tokens.decode([i]) for i in encoded.ids[row, : encoded.length[row]]]
            for row in first_rows(encoded)[:SHOWN]
        ],
    }
    store.save()


def _changed(store: Store, pair: checkpoints.Pair, task: "Task") -> str:
    """What no longer is what an interrupted run began with, though it has the same name."""
    manifest = store.manifest
    names = [w for w in ("pre", "post") if manifest["digests"][w] != getattr(pair, w).digest()]
    return ", ".join(names + ["the task"] * (manifest["prompts"] != _prompts(task)))


def _prompts(task: "Task") -> list[dict[str, Any]]:
    columns = [c for c in ("prompt", "answer", "wrong", "subject", "template") if c in task.rows]
    return json.loads(str(task.rows[columns].to_json(orient="records")))


def _commit() -> str | None:
    """The checkout's commit, where mechforget runs from one."""
    import subprocess

    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _estimate(todo: list[Job], inputs: Inputs, say: Callable[[str], None]) -> None:
    """Says what is to come: a measured forward of some prompts, times the blocks of each job."""
    if not todo:
        return
    encoded = inputs.encoded.subset(np.arange(min(4, inputs.encoded.n_prompts)))
    small = inputs.with_encoded(encoded)
    forgetting(small)  # the first call also imports
    start = time.monotonic()
    forgetting(small)
    per_block = (time.monotonic() - start) / (2 * inputs.post.spec.layers) / encoded.ids.size
    size = inputs.encoded.ids.size
    seconds = {job.name: job.blocks * per_block * size * 0.5 for job in todo}
    parts = ", ".join(f"{name} {_time(s)}" for name, s in seconds.items() if s >= 1)
    say(f"estimated: {_time(sum(seconds.values()))} in all ({parts or 'each under a second'})")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _patterns(inputs: Inputs) -> Any:
    """Attention of the first prompts, both checkpoints, as bytes: 255 is all of it."""
    import xarray as xr

    encoded = inputs.encoded.subset(np.arange(min(SHOWN, inputs.encoded.n_prompts)))
    both = np.stack([patterns(m, encoded) for m in (inputs.pre, inputs.post)])
    dims = ("at", "layer", "shown", "head", "query", "key")
    return xr.Dataset({"pattern": (dims, np.rint(both.clip(0, 1) * 255).astype(np.uint8))})


def to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
