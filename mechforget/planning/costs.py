"""What a study costs on a given machine: forward passes, FLOPs, bytes of weights read, and time.

The time is the larger of the two parts, reading weights and arithmetic: max(bytes / bandwidth,
FLOPs / throughput).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, nan

from mechforget.models.protocol import Point
from mechforget.models.sites import Spec
from mechforget.planning.sizes import Sizes
from mechforget.study.job import Job
from mechforget.sweeps.chunks import max_tokens
from mechforget.sweeps.donor import at_all_positions
from mechforget.sweeps.plan import Plan

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
GPU_BANDWIDTH = 2000  # GB/s of an 80 GB GPU's own memory (A100: 2,000; H100: 3,350)


@dataclass(frozen=True)
class Setting:
    """What is asked for, and what it would run on."""

    rows: int  # that a model is fed
    tokens: int  # of a row
    dtype: str
    memory: float  # GB for one forward's activations
    bandwidth: float  # GB/s from the disk
    throughput: float  # TFLOP/s
    half: bool = False  # what travels between models is float16
    reads: float = 1.0  # positions of a row that are unembedded
    alone: "tuple[int, int] | None" = None  # rows and their tokens where no row holds two prompts

    def of(self, job: Job) -> "Setting":
        """With the rows that this job is fed."""
        if job.across or self.alone is None:
            return self
        rows, tokens = self.alone
        reads = self.reads * self.rows / rows
        return replace(self, rows=rows, tokens=tokens, reads=reads)


@dataclass(frozen=True)
class Machine:
    name: str
    size: float  # GB, each
    devices: int = 1
    disk: bool = False  # weights are streamed from it even where they'd fit


MACHINES = (
    Machine("one 80 GB GPU", 80),
    Machine("8 x 80 GB", 80, devices=8),
    Machine("24 GB, streaming from disk", 24, disk=True),
)


@dataclass(frozen=True)
class Cost:
    forwards: float
    flops: float
    weights: float  # bytes of weights read: each once a forward, all experts at the worst


def _parts(job: Job, spec: Spec, at: Setting, memory: float) -> tuple[int, int]:
    """Chunks of prompts, and groups of variants in each: as `sweeps.chunks` and `sweeps.run.sweep`
    part them, so that a forward holds at most `max_tokens(memory)` tokens."""
    budget = max_tokens(spec, memory, at.tokens, at.reads) // at.tokens  # rows
    chunk = min(at.rows, max(1, budget // (len(job.variants) + 1)))
    groups = ceil(len(job.variants) / max(1, budget // chunk - 1))
    return ceil(at.rows / chunk), max(1, groups)


def cost(
    job: Job, spec: Spec, sizes: Sizes, at: Setting, memory: float, *, dense: bool = False
) -> Cost:
    """Of all sweeps. Forwards: sweeps · chunks · (captures + groups). FLOPs of a row: its blocks
    (captures and repeated bases: all layers; variants: Plan.layer_runs), sizes.block per token of
    each, and the unembedding, 2 per weight, at the positions that are read."""
    at = at.of(job)
    chunks, groups = _parts(job, spec, at, memory)
    bases = job.captures + groups - 1
    blocks = bases * spec.layers + Plan.of(job.variants).layer_runs(spec.layers)
    read = bases + 1 + len(job.variants)
    unembedded = read * at.reads * 2 * sizes.unembedding
    row = blocks * at.tokens * sizes.block(at.tokens, dense=dense) + unembedded
    passes = job.sweeps * chunks * (job.captures + groups)
    weights = passes * sizes.total * BYTES[at.dtype]
    return Cost(passes, job.sweeps * at.rows * row, weights)


def seconds(found: Cost, at: Setting, *, held: bool = False) -> float:
    """With every weight streamed from the disk; held: from a GPU's own memory."""
    bandwidth = GPU_BANDWIDTH if held else at.bandwidth
    return max(found.weights / bandwidth / 1e9, found.flops / at.throughput / 1e12)


def sent(
    job: Job, spec: Spec, at: Setting, values: Mapping[Point, int], width: int | None = None
) -> float:
    """Bytes of the donor's values that are sent, in one direction. values: the number of values at
    each point in a row of `width` tokens; None: as wide as those that are fed.

    For head_out and expert_out, what each unit adds to the residual stream is sent; W_O stays where
    it is.
    """
    at = at.of(job)
    wider = at.tokens / (width or at.tokens)

    def held(point: Point) -> float:
        return values[point] * (wider**2 if point[1] == "pattern" else wider)

    total = sum(held(point) for point in job.also)
    for edit in {at_all_positions(edit) for variant in job.variants for edit in variant}:
        if edit.site in ("head_out", "expert_out", "resid_mid"):
            row = at.tokens * spec.d_model
        else:
            row = held((edit.layer, edit.site)) // (spec.units(edit.site) or 1)
        total += row
    size = min(BYTES[at.dtype], 2) if at.half else BYTES[at.dtype]
    return at.rows * total * size


@dataclass(frozen=True)
class Fit:
    """One sweep (of all heads, one direction) on one machine."""

    machine: Machine
    fits: str  # both checkpoints, one, streamed (a layer at a time), or no: not even a layer
    layers: int  # on each device
    weights: float  # GB on each device
    memory: float  # GB of activations: what was asked for, or what is left
    passes: float
    seconds: float
    best: tuple[float, float] | None  # GB of activations that are left, and the seconds with them


def fit(machine: Machine, job: Job, spec: Spec, sizes: Sizes, at: Setting) -> Fit:
    """Layers are placed on devices in order, so the devices work one after the other: eight devices
    hold more and are not faster. What does not fit is read from the disk again in each forward
    pass."""
    gb = sizes.total * BYTES[at.dtype] / 1e9
    layers = ceil(spec.layers / machine.devices)
    streams = machine.disk or gb / machine.devices + at.memory > machine.size
    held = sizes.largest * BYTES[at.dtype] / 1e9 if streams else gb / machine.devices
    left = machine.size - held

    def time(memory: float) -> tuple[float, float]:
        found = cost(job, spec, sizes, at, memory)
        bandwidth = at.bandwidth if streams else GPU_BANDWIDTH
        passes = found.forwards / job.sweeps
        flops = found.flops / job.sweeps
        return passes, max(passes * gb / bandwidth, flops / at.throughput / 1e12)

    if left <= 0:
        return Fit(machine, "no", layers, held, 0, 0, nan, None)
    memory = min(at.memory, left)
    both = 2 * gb / machine.devices + memory <= machine.size
    fits = "streamed" if streams else "both" if both else "one"
    room = float(int(0.8 * left))  # a fifth is left for what isn't counted
    best = (room, time(room)[1]) if room > 1.5 * memory else None
    return Fit(machine, fits, layers, held, memory, *time(memory), best)
