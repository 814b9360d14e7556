"""How long a study will take, and what would take how much longer."""

import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from mechforget.measures import Inputs
from mechforget.study.available import available
from mechforget.study.catalogue import names
from mechforget.study.job import Job
from mechforget.study.jobs import jobs
from mechforget.study.settings import Study
from mechforget.sweeps.donor import Donor
from mechforget.sweeps.plan import Plan, single
from mechforget.sweeps.run import sweep
from mechforget.tasks.encoded import fed_tokens, grouped, packed


def shape(inputs: Inputs) -> tuple[int, int]:
    """What `jobs` need to know of a task: tokens in one pass over it, and in its longest row."""
    return _fed(inputs), inputs.encoded.ids.shape[1]


def _fed(inputs: Inputs, *, across: bool = True) -> int:
    return fed_tokens(inputs.encoded, **inputs.post.spec.packing, across=across)


def omitted(study: Study, inputs: Inputs, lacks: dict[str, str]) -> list[Job]:
    """The jobs of all measures that this pair supports and the study does not make."""
    spec, of = inputs.post.spec, shape(inputs)
    every, _ = available(study.model_copy(update={"measures": names()}), spec, lacks)
    mine = {job.name for job in jobs(study, spec, *of)}
    return [job for job in jobs(every, spec, *of) if job.name not in mine]


def estimate(
    todo: list[Job], left_out: list[Job], inputs: Inputs, say: Callable[[str], None]
) -> None:
    """Says how long each job will take, and how long those would take that are left out. A small
    sweep is timed for this."""
    if not todo:
        return
    few = inputs.encoded.subset(np.arange(min(8, inputs.encoded.n_prompts)))
    spec, variants = inputs.post.spec, single(inputs.post.spec, "resid_pre")
    groups = grouped(few, **spec.packing)
    (few,), _ = packed(few, groups=groups)
    donor, own = (Donor.of(m, few, variants) for m in (inputs.pre, inputs.post))
    start = time.monotonic()
    sweep(inputs.post, few, donor, variants, own=own)
    blocks = Plan.of(variants).layer_runs(spec.layers)
    per_block = (time.monotonic() - start) / blocks / few.fed.size
    each = {across: per_block * _fed(inputs, across=across) for across in (True, False)}
    seconds: dict[str, float] = defaultdict(float)
    for job in todo:
        seconds[job.name] += job.blocks(spec.layers) * each[job.across]
    parts = ", ".join(f"{name} {_time(s)}" for name, s in seconds.items() if s >= 1)
    say(f"estimated: {_time(sum(seconds.values()))} in all ({parts or 'each under a second'})")
    if left_out:
        costs = ", ".join(
            f"{n.name} {_time(n.blocks(spec.layers) * each[n.across])}" for n in left_out
        )
        say(f"not among the measures: {costs}; --measures all runs them too")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
