"""A plan in the terminal: sizes, what each measure needs, and where it fits."""

import sys
from typing import TYPE_CHECKING, Any

from mechforget.planning.costs import BYTES, GPU_BANDWIDTH, MACHINES, Cost, cost, fit, seconds, sent
from mechforget.planning.forecast import Forecast
from mechforget.planning.sizes import Layer
from mechforget.study.job import SENT, Job
from mechforget.sweeps.chunks import max_tokens

if TYPE_CHECKING:
    from torch import nn

WIDTH = 100  # where there is no terminal to ask


def show(plan: Forecast) -> None:
    """Prints it: tables with colours in a terminal, plain ones in a file."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    spec, at = plan.spec, plan.at
    console.print(
        f"{spec.family}: {spec.layers} layers of {spec.heads} heads ({spec.kv_heads} of keys and "
        f"values), {spec.d_model} wide, {spec.d_vocab} tokens"
        + (f", {spec.experts} experts in {len(spec.moe)} layers" if spec.experts else "")
    )
    console.print(_sizes(plan))
    rows = max_tokens(spec, at.memory, at.tokens, at.reads) // at.tokens
    console.print(
        f"{at.rows} rows of {at.tokens} tokens; --dtype {at.dtype}; --memory {at.memory:g} GB of "
        f"activations: {rows} rows in a forward"
    )
    console.print(
        f"--bandwidth {at.bandwidth:g} GB/s from the disk, --throughput {at.throughput:g} TFLOP/s; "
        "time is the longer of the two"
    )
    console.print(_jobs(plan))
    console.print(_machines(plan))
    for line in (*_costs(plan), *plan.notes):
        console.print(f"note: {line}")
    console.print(
        f"scan: {plan.scan.edits} edits for {len(plan.jobs)} results were run without values: "
        "every site, shape and layer is there"
    )


def outline(hf_model: "nn.Module", dtype: str, why: str) -> None:
    """Says what can be said about a model that no backend supports."""
    total = sum(p.numel() for p in hf_model.parameters())
    sizes = ", ".join(
        f"{_gb(total * BYTES[d])} GB as {d}" for d in dict.fromkeys((dtype, "float32"))
    )
    sys.stdout.write(f"{type(hf_model).__name__}: {_count(total)} parameters: {sizes}\n")
    sys.stdout.write(f"note: there is no study of it: {' '.join(why.split())}\n")


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _sizes(plan: Forecast) -> Any:
    sizes, dtype = plan.sizes, plan.at.dtype
    dtypes = dict.fromkeys((dtype, "float32"))
    table = _table("Parameters", "part", "in a layer", "in all", *(f"{d}, GB" for d in dtypes))

    def row(name: str, layer: str, count: float) -> None:
        table.add_row(name, layer, _count(count), *(_gb(count * BYTES[d]) for d in dtypes))

    for name in ("attention", "mlp", "experts", "norms"):
        each = [getattr(layer, name) for layer in sizes.layers]
        if any(each):
            ends = dict.fromkeys(map(_count, (min(each), max(each))))
            row(name, " to ".join(ends), sum(each))
    row("embeddings", "", sizes.outside)
    row("all", _span(sizes.layers), sizes.total)
    if sizes.experts:
        row(f"a token's ({sizes.chosen} of {sizes.experts} experts)", "", sizes.active)
    return table


def _span(layers: tuple[Layer, ...]) -> str:
    ends = [_count(f(layer.total for layer in layers)) for f in (min, max)]
    return " to ".join(dict.fromkeys(ends))


def _jobs(plan: Forecast) -> Any:
    table = _table(
        "Each measure, with the weights streamed from the disk (or in memory, where it says so)",
        *("result", "variants", "forwards", "TFLOP", "TB read", "time", "in one place"),
    )
    for job in plan.jobs:
        found = _cost(plan, job)
        table.add_row(
            job.name,
            f"{len(job.variants) or '–'}",
            f"{found.forwards:,.0f}",
            _short(found.flops / 1e12),
            _short(found.weights / 1e12),
            _time(seconds(found, plan.at, held=job.held)),
            _where(plan, job),
        )
    return table


def _where(plan: Forecast, job: Job) -> str:
    memory = ", in memory" * job.held
    if job.where != SENT:
        return job.where + memory
    travels = sent(job, plan.spec, plan.at, plan.scan.values, plan.scan.width)
    return f"one; {travels / 1e9:.2g} GB sent{memory}"


def _cost(plan: Forecast, job: Job, *, dense: bool = False) -> Cost:
    return cost(job, plan.spec, plan.sizes, plan.at, plan.at.memory, dense=dense)


def _machines(plan: Forecast) -> Any:
    job = _dearest(plan)
    table = _table(
        f"One sweep of {job.name} ({len(job.variants)} variants, one direction)",
        *("machine", "fits", "shards", "weights", "activ.", "forwards", "time", "--memory: time"),
    )
    for machine in MACHINES:
        found = fit(machine, job, plan.spec, plan.sizes, plan.at)
        table.add_row(
            machine.name,
            found.fits,
            f"{machine.devices} x {found.layers}" if found.fits in ("one", "both") else "–",
            f"{found.weights:.3g} GB",
            f"{found.memory:.3g} GB",
            f"{found.passes:,.0f}",
            _time(found.seconds),
            f"{found.best[0]:g}: {_time(found.best[1])}" if found.best else "–",
        )
    return table


def _dearest(plan: Forecast) -> Job:
    """The sweep that the machines are compared on: the one that reads the most weights."""
    return max(plan.jobs, key=lambda n: _cost(plan, n).weights / n.sweeps)


def _costs(plan: Forecast) -> list[str]:
    gb = plan.sizes.total * BYTES[plan.at.dtype] / 1e9
    said = [
        f"both checkpoints are {_short(2 * gb)} GB; fits: both, one, or streamed layer by layer",
        "shards: GPUs x layers on each; one works after the other, at "
        f"{GPU_BANDWIDTH} GB/s from its own memory",
        "each forward reads every weight once (experts: at the worst); a larger --memory needs "
        "fewer forwards",
        "sent: a donor's values, one direction, where the two models run apart"
        + (" (as float16)" if plan.at.half else ""),
    ]
    if held := [job.name for job in plan.jobs if job.held]:
        said.append(
            f"in memory: {', '.join(held)} need gradients, or weights that can be moved; where "
            "weights are streamed they are left out"
        )
    if plan.sizes.experts:
        job = _dearest(plan)
        times = _cost(plan, job, dense=True).flops / _cost(plan, job).flops
        said.append(f"with every expert run on every token it would be {times:.1f} times the FLOPs")
    return said


def _count(n: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n:.0f}"


def _gb(n: float) -> str:
    return f"{n / 1e9:,.2f}" if n < 1e11 else f"{n / 1e9:,.0f}"


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _time(s: float) -> str:
    if s != s:  # it doesn't fit
        return "–"
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if s >= 2 * size:
            return f"{s / size:,.1f} {unit}"
    return f"{s:.2g} s" if s < 10 else f"{s:.0f} s"
