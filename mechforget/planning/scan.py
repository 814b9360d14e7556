"""Runs a study's patching for real, on tensors without values.

The backend, its proof and the sweep engine are the ones that a run uses, so a wrong site, shape or
layer fails here. What only values can show is not found: dead hooks, or contributions that do not
sum to the residual stream. One growing batch holds the edits of every measure at every layer, so
that a scan takes seconds; then each job rehearses what else it does, such as a backward pass.

Two things stand for others of their kind: for the variants of a job that have several edits, the
last of them; for the heads (or groups, or experts) of a layer, the first and the last, since the
others are slices of the same axis.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.checkpoints import folder
from mechforget.checkpoints.quiet import quiet
from mechforget.errors import CheckpointError, ModelError, one_line
from mechforget.models.opening import proven
from mechforget.models.proof import BREAKS
from mechforget.models.protocol import Point
from mechforget.models.sites import BY_EXPERT
from mechforget.study.job import Job, Rehearsal
from mechforget.sweeps.donor import Donor, capture
from mechforget.sweeps.run import sweep
from mechforget.tasks.encoded import Encoded

if TYPE_CHECKING:
    from torch import nn
    from torch.nn import Parameter

    from mechforget.models.cells import Cell

FAILS = (*BREAKS, ZeroDivisionError, AssertionError, NotImplementedError)


def meta_model(path: Path, dtype: str) -> "nn.Module":
    """The model that a folder's config.json describes, on the meta device; of a multimodal one its
    text model. Raises: CheckpointError: no such config. ModelError: no such model can be made."""
    import transformers

    config: Any = folder.described(path)
    try:
        text = config.get_text_config()
    except ValueError:  # it has several, and is no language model
        text = config
    if text is config:
        folder.model_class(config, path)
    elif type(text) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"{path} is a {config.model_type}, whose text model ({text.model_type}) is no causal "
            "language model"
        )
    # A grouped product of matrices takes bfloat16 only.
    experts = {"experts_implementation": "eager"}
    return _made(transformers.AutoModelForCausalLM, text, path, dtype, **experts)


def meta_model_of_any_kind(path: Path, dtype: str) -> "nn.Module":
    """Like `meta_model`, for any kind of model; only its size can be used."""
    import transformers

    return _made(transformers.AutoModel, folder.described(path), path, dtype)


def _made(kind: Any, config: Any, path: Path, dtype: str, **settings: str) -> "nn.Module":
    import torch

    settings |= {"attn_implementation": "eager"}
    try:
        with quiet(), torch.device("meta"):
            made = kind.from_config(config, dtype=getattr(torch, dtype), **settings)
    except FAILS as error:
        raise ModelError(
            f"{path / 'config.json'} describes no model that can be made: {one_line(error, 200)}"
        ) from error
    return made.eval().requires_grad_(False)


def wrapped(hf_model: "nn.Module", backend: str) -> Any:
    """The meta model behind the nnsight backend, with the sites that `backend` would have.

    Raises: ModelError: the architecture is not supported.
    """
    from mechforget.planning.placeholders import Placeholders

    with Placeholders():
        model = proven(hf_model, "nnsight")
    missing = ("router", *BY_EXPERT) if backend == "transformer_lens" else ()
    scale = None if model.spec.residual_scale is None else 1.0  # without values it comes out as 0
    model.spec = replace(
        model.spec,
        sites=model.spec.sites.difference(missing),
        residual_scale=scale,
        resident=True,
    )
    return model


def placeholders(vocabulary: int, prompts: int, length: int) -> Encoded:
    """Prompts of one length with one-token answers, right and wrong: tokens 0 and 1 in turn."""
    n, both = np.arange(prompts), 2 * prompts
    return Encoded(
        ids=np.random.default_rng(0).integers(0, vocabulary, (prompts, length)),
        length=np.full(prompts, length),
        row_prompt=n,
        prompt_length=np.full(prompts, length),
        read_row=n.repeat(2),
        read_position=np.full(both, length - 1),
        read_target=np.stack([n % 2, 1 - n % 2], 1).ravel(),
        read_prompt=n.repeat(2),
        read_wrong=np.tile([False, True], prompts),
        cluster=n,
    )


@dataclass(frozen=True)
class Scan:
    edits: int  # that were run
    values: dict[Point, int]  # in one row, at each point that is read
    width: int  # of that row


def scan(model: Any, encoded: Encoded, todo: list[Job]) -> Scan:
    """Runs all jobs on the first two prompts, with the model as both donor and recipient.

    Raises: MechforgetError: what a run would fail with, in the same words.
    """
    import torch

    from mechforget.planning.placeholders import Placeholders

    few = encoded.subset(np.arange(min(2, encoded.n_prompts)))
    every = dict.fromkeys(edit for job in todo for v in job.variants for edit in v)
    if any(job.held for job in todo):  # a server has them beside its weights
        model.spec = replace(model.spec, resident=True)
    units = model.spec.units
    edits = [edit for edit in every if not 0 < (edit.head or 0) < units(edit.site) - 1]
    several = [v for job in todo for v in job.variants[-1:] if len(v) > 1]
    variants = [*((edit,) for edit in edits), *several]
    read = sorted({point for job in todo for point in job.points})
    try:
        # Outside of Placeholders, which would look at each of some ten thousand views.
        own = _at_the_edges(model) if any(job.by_cell for job in todo) else {}
        with Placeholders(), torch.no_grad():
            found = capture(model, few.fed, read, few.parent)
            same = Donor(model, found)
            sweep(model, few, same, variants, own=same)
            for job in todo:
                if job.rehearse is not None:
                    job.rehearse(Rehearsal(model, few, own))
    except FAILS as error:
        raise ModelError(
            f"a {model.family} model breaks the scan: {one_line(error, 200)}"
        ) from error
    values = {point: t.numel() // len(few.fed) for point, t in found.items()}
    return Scan(len(edits), values, few.fed.shape[1])


def _at_the_edges(model: Any) -> "dict[Parameter, list[Cell]]":
    """The cells of the first and the last layer of each kind, and of their first and last unit.
    Fails if a parameter belongs to nothing."""
    from mechforget.models.cells import cells
    from mechforget.models.proof import edge_layers

    edges = {None, *edge_layers(model)}
    return {
        p: [c for c in places if c.unit in (None, places[0].unit, places[-1].unit)]
        for p, places in cells(model).items()
        if places[0].layer in edges
    }
