"""A job computes one result of a study. It knows its cost and which weights it needs where."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

# Which weights must be in one place. `SENT`: those of one checkpoint; the activations of the other
# are sent there.
ONE, BOTH, SENT = "one checkpoint", "both checkpoints", "sent"


@dataclass(frozen=True)
class Scope:
    """What the jobs of a measure depend on: the study, and the shapes of model and task."""

    study: Study
    spec: Spec
    fed: int  # tokens in one pass over the task
    tokens: int  # of the longest prompt with its answer


@dataclass(frozen=True)
class Work:
    """What a job is given when it is run."""

    study: Study
    pair: "Inputs"
    new: "Inputs | None"  # the same pair on the new task
    controls: "Mapping[str, Inputs]"  # "twin", "old"
    files: "checkpoints.Pair | None"  # the pair on the disk, for its weights
    shared: "np.ndarray | None"  # the prompts of both tasks about one subject
    get: "Callable[[str], xr.Dataset]"  # an earlier result, by its name in the store

    def on_new_task(self) -> "Inputs":
        assert self.new is not None, "a measure of both tasks is left out where there is one"
        return self.new


@dataclass(frozen=True)
class Rehearsal:
    """What a plan runs the gradients of a job on: a model and prompts without values."""

    model: "Model"
    encoded: "Encoded"
    # Of the first and the last layer of a kind, and of their first and last head or expert.
    cells: "Mapping[Parameter, list[Cell]]"


@dataclass(frozen=True)
class Job:
    """Computes one result. A sweep is one growing batch over all prompts, in one direction."""

    name: str  # in the store
    run: "Callable[[Work], xr.Dataset]"
    sweeps: float  # of jobs without variants: plain forward passes
    variants: tuple[Variant, ...] = ()  # of one sweep
    captures: int = 0  # forward passes that only read activations, before each sweep
    also: tuple[Point, ...] = ()  # points that are read besides those of the variants
    where: str = ONE
    held: bool = False  # whether weights must be in memory: for gradients, or to be changed
    after: tuple[str, ...] = ()  # names of results that it reads
    once: bool = False  # of a sequence: made once, not for each checkpoint
    across: bool = (
        True  # whether prompts may share tokens, which a gradient of each prompt rules out
    )
    by_cell: bool = False  # whether it needs to know which head or expert each weight belongs to
    rehearse: Callable[[Rehearsal], None] | None = None  # what a plan runs besides the variants

    @property
    def points(self) -> list[Point]:
        return [*points(self.variants), *self.also]

    def blocks(self, layers: int) -> float:
        """How many blocks are run for each row of the task, without the passes that only record
        activations. The run time of the job is proportional to this number."""
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
    """A sweep of activations. It captures the donor's activations and also the recipient's own, so
    that variants that would change nothing are left out."""
    captures = 2 if sweeps == 1 else 1
    return Job(name, run, sweeps, variants, captures, where=SENT, after=after, once=once)
