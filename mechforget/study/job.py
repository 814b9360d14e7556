"""One result of a study: what it costs, what must be where, and how it is got."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mechforget.models.protocol import Point
from mechforget.models.sites import Spec
from mechforget.study.settings import Study
from mechforget.sweeps.donor import points
from mechforget.sweeps.plan import Plan, Variant

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from torch.nn import Parameter

    from mechforget import checkpoints
    from mechforget.measures import Inputs
    from mechforget.models.cells import Cell
    from mechforget.models.protocol import Model
    from mechforget.tasks import Encoded

# Whose weights must be in one place. `SENT`: one checkpoint's, and the other's activations.
ONE, BOTH, SENT = "one checkpoint", "both checkpoints", "sent"


@dataclass(frozen=True)
class Scope:
    """What a measure's jobs depend on: the study, and the shapes of the model and of the task."""

    study: Study
    spec: Spec
    rows: int  # of the task
    tokens: int  # of a row


@dataclass(frozen=True)
class Work:
    """What jobs are run on."""

    study: Study
    pair: "Inputs"
    new: "Inputs | None" = None  # the same pair on the new task
    controls: "Mapping[str, Inputs]" = field(default_factory=dict)  # "twin", "old"
    files: "checkpoints.Pair | None" = None  # the pair on the disk, for its weights
    shared: "np.ndarray | None" = None  # the prompts of both tasks about one subject
    get: "Callable[[str], xr.Dataset]" = field(default=lambda name: _nothing(name))

    def on_new_task(self) -> "Inputs":
        assert self.new is not None, "a measure of both tasks is left out where there is one"
        return self.new


def _nothing(name: str) -> "xr.Dataset":
    raise KeyError(name)


@dataclass(frozen=True)
class Rehearsal:
    """What a plan runs a job's gradients on: tensors without values."""

    model: "Model"
    encoded: "Encoded"
    # Of the first and the last layer of a kind, and of their first and last head or expert.
    cells: "Mapping[Parameter, list[Cell]]"


@dataclass(frozen=True)
class Job:
    """One result. A sweep is one growing batch over all prompts, in one direction."""

    name: str  # in the store
    run: "Callable[[Work], xr.Dataset]"
    sweeps: float  # plain forward passes, where there are no variants
    variants: tuple[Variant, ...] = ()  # of one sweep
    captures: int = 0  # forward passes that only read activations, before each sweep
    also: tuple[Point, ...] = ()  # what is read besides the variants' own points
    where: str = ONE
    held: bool = False  # weights must be in memory: they have gradients, or are moved or lent
    after: tuple[str, ...] = ()  # results that it reads
    once: bool = False  # for the whole run, not for each checkpoint of a sequence
    by_cell: bool = False  # it takes weights apart by whose they are
    rehearse: Callable[[Rehearsal], None] | None = None  # what a plan runs besides the variants

    @property
    def points(self) -> list[Point]:
        return [*points(self.variants), *self.also]

    def blocks(self, layers: int) -> float:
        """Executed per row of the task, captures left out: what the time of a job goes with."""
        return self.sweeps * Plan.of(self.variants).layer_runs(layers)


def swept(
    name: str,
    run: "Callable[[Work], xr.Dataset]",
    variants: tuple[Variant, ...],
    *,
    sweeps: int = 2,
    after: tuple[str, ...] = (),
    once: bool = False,
) -> Job:
    """A sweep of activations. Captured: the donor's, and the recipient's own, so that variants that
    change nothing are left out."""
    captures = 2 if sweeps == 1 else 1
    return Job(name, run, sweeps, variants, captures, where=SENT, after=after, once=once)
