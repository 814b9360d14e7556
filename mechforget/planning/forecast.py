"""The plan of a study: what `mechforget plan` prints."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mechforget.errors import MechforgetError, StudyError
from mechforget.measures import Inputs
from mechforget.models.sites import Spec
from mechforget.planning.costs import Setting
from mechforget.planning.scan import Scan, placeholders, scan, wrapped
from mechforget.planning.sizes import Sizes, sizes
from mechforget.study.available import available, lacking
from mechforget.study.job import Job
from mechforget.study.jobs import jobs
from mechforget.study.scene import Scene
from mechforget.study.settings import Study
from mechforget.sweeps import MEMORY
from mechforget.tasks.encoded import Encoded, fed_tokens, grouped

if TYPE_CHECKING:
    from torch import nn

PROMPTS = 20


@dataclass(frozen=True)
class Forecast:
    spec: Spec
    sizes: Sizes
    at: Setting
    jobs: list[Job]
    scan: Scan
    notes: list[str]


def forecast(
    hf_model: "nn.Module",
    path: Path,
    study: Study,
    *,
    tokens: int,
    bandwidth: float,
    throughput: float,
) -> Forecast:
    """Scans all jobs of a study. The prompts are the study's own if its task and the tokenizer in
    `path` can be loaded, otherwise `study.prompts` placeholders of `tokens` tokens.

    hf_model: on the meta device, from `scan.meta_model`; it is wrapped in place.
    Raises: MechforgetError: whatever the study would fail with.
    """
    for name, given in (("tokens", tokens), ("bandwidth", bandwidth), ("throughput", throughput)):
        if not (0 < given < float("inf")):
            raise StudyError(f"--{name} {given}: want a number above 0")
    found = wrapped(hf_model, study.backend)
    streamed = study.device == "disk" or study.backend == "remote"  # on its disk, or a server's
    found.spec = replace(found.spec, resident=not streamed)
    counted = sizes(found)
    limit = getattr(found.module.config, "max_position_embeddings", None)
    if limit and tokens > limit:
        raise StudyError(f"--tokens {tokens}: this model takes {limit}")
    encoded, notes = _encoded(path, study, found.spec.d_vocab, tokens)
    lacks = lacking(Scene(study, Inputs(found, found, encoded)))  # both checkpoints are this model
    study, left_out = available(study, found.spec, lacks)
    rows, length = _rows(encoded, found.spec)
    todo = jobs(study, found.spec, rows * length, encoded.ids.shape[1])
    at = Setting(
        rows,
        length,
        study.dtype,
        study.memory or MEMORY,
        bandwidth,
        throughput,
        study.half_donors,
        reads=encoded.n_read / rows,
        alone=_rows(encoded, found.spec, across=False),
    )
    if study.between:
        notes.append(f"each of the {len(study.between)} checkpoints between costs as much again")
    return Forecast(found.spec, counted, at, todo, scan(found, encoded, todo), notes + left_out)


def _rows(encoded: Encoded, spec: Spec, *, across: bool = True) -> tuple[int, int]:
    """The rows that a model is fed, and their mean width."""
    how = {**spec.packing, "across": across}
    rows = sum(group.rows for group in grouped(encoded, **how))
    return rows, round(fed_tokens(encoded, **how) / rows)


def _encoded(path: Path, study: Study, vocabulary: int, tokens: int) -> tuple[Encoded, list[str]]:
    stand_in = placeholders(vocabulary, study.prompts or PROMPTS, tokens)
    if not study.task or study.task.startswith("hub:"):  # nothing is asked of the network here
        return stand_in, []
    from mechforget.checkpoints import folder
    from mechforget.study.prompts import prompts

    try:
        encoded = prompts(study, study.task).encode(folder.tokenizer(path))
    except MechforgetError as error:
        return stand_in, [f"prompts are placeholders: {error}"]
    return encoded, [f"prompts: {encoded.n_prompts} of {study.task}"]
