"""The options of `mechforget compare`, in the groups in which `--help` shows them."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from mechforget.study.catalogue import ALL, ENTRIES, defaults
from mechforget.study.settings import SITES, Backend, Dtype

MORE = ", ".join(entry.name for entry in ENTRIES if not entry.default)
QUESTIONS = "\n".join(f"{entry.name}: {entry.question}" for entry in ENTRIES)


@dataclass(frozen=True)
class WhatToMeasure:
    measures: Annotated[
        tuple[str, ...],
        arg(
            help=f"Separated by spaces or commas; also: {MORE}, or {ALL}. What each one answers:\n"
            + QUESTIONS
        ),
    ] = defaults()
    sites: tuple[str, ...] = SITES
    """The sites to patch; also: q, k, v, pattern, resid_pre, resid_mid, and in mixtures of experts
    router and expert_out (each expert's weights are then grafted, too)."""
    screen: int | None = None
    """Patch only this many heads exactly: the first by attribution patching, which ranks them
    all."""
    graft_top: int = 16
    """How many heads have their W_Q, W_K, W_V and W_O grafted one by one as well."""
    control_twin: str | None = None
    """Another training seed of POST: what differs between the two is the noise floor."""
    control_old: str | None = None
    """PRE, trained further on the old task: another noise floor."""


@dataclass(frozen=True)
class WhichPrompts:
    task: str
    """The old task: a file, builtin:capital, hub:org/name, or a folder of a Hugging Face data
    set."""
    new_task: str | None = None
    """What POST was trained on; it is scored before and after, too."""
    prompts: int | None = None
    """At most this many prompts, drawn with the seed."""
    few_shot: int = 0
    """How many examples are put before each prompt."""
    only_known: bool = False
    """Keep only the prompts that PRE answers right."""
    seed: int = 0
    """Of every random draw."""


@dataclass(frozen=True)
class WhereItRuns:
    backend: Backend = "transformer_lens"
    """What runs the models; the numbers agree. nnsight also shows experts, and runs models that are
    larger than memory (--device disk or auto); remote runs them on a server."""
    device: str = "cpu"
    """cpu, cuda or cuda:1; with nnsight also auto (several devices) or disk."""
    dtype: Dtype = "float32"
    memory: float | None = None
    """GB for the activations of one forward pass; none: what suits the machine, half of what is
    free on a GPU, 0.5 on a CPU, where more is slower. A run keeps what it began with."""
    server: str | None = None
    """With backend remote: http://HOST:PORT of a server of your own; without it hosted NDIF, with
    the key in NDIF_API_KEY."""
    half_donors: bool = False
    """With backend remote: what travels between two served models is sent as float16."""
