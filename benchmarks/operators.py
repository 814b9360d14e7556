"""Where the time of a head sweep goes: torch's own profiler, by kind of operator."""

from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.scene import Scene
from mechforget import measures

KINDS = {  # kind -> parts of the operators' names; the first kind that fits
    "matrix products": ("mm", "matmul", "linear", "conv", "gemm"),
    "attention kernels": ("attention",),
    "softmax": ("softmax", "logsumexp"),
    "copies": (
        *("copy", "clone", "cat", "contiguous", "index", "gather", "scatter", "repeat", "fill"),
        *("empty", "zero", "stack", "select", "slice", "memcpy", "memset"),
    ),
    "elementwise": (
        *("add", "mul", "sub", "div", "silu", "gelu", "tanh", "pow", "rsqrt", "mean", "neg", "sum"),
        *("layer_norm", "where", "masked", "elementwise", "reduce", "eq", "bitwise", "argmax"),
    ),
}


def by_kind(scene: Scene) -> dict[str, Any]:
    """kind -> share of the operators' own time, and the slowest operators by name."""
    on_gpu = scene.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    assert scene.inputs is not None  # opened before the profiler starts
    with profile(activities=activities) as seen:
        measures.patching(scene.inputs, site="z")
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    spent = {event.key: float(getattr(event, name)) for event in seen.key_averages()}
    whole = sum(spent.values())
    kinds = dict.fromkeys([*KINDS, "other"], 0.0)
    for operator, time in spent.items():
        kinds[kind(operator)] += time / whole
    slowest = sorted(spent, key=lambda operator: -spent[operator])[:12]
    return {"kinds": kinds, "slowest": {key: spent[key] / whole for key in slowest}}


def kind(operator: str) -> str:
    """
    >>> kind("aten::addmm"), kind("aten::_softmax"), kind("aten::add_"), kind("aten::copy_")
    ('matrix products', 'softmax', 'elementwise', 'copies')
    """
    plain = operator.lower().removeprefix("aten::")
    return next((k for k, names in KINDS.items() if any(n in plain for n in names)), "other")
