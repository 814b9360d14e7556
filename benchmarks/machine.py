"""How fast this machine multiplies matrices and reads memory, and what it is."""

import hashlib
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import mechforget
from benchmarks.bound import Shape

TOKENS = 2048  # rows of a product: about what a growing batch holds
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight")


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: str, times: int = 3) -> float:
    """The fastest of some runs, after one that doesn't count."""
    found = []
    for _ in range(1 + times):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def product_rate(shape: Shape, device: str, tokens: int = TOKENS) -> float:
    """FLOP/s of a layer's weight matrices with so many tokens: what the bound is divided by."""
    spent = flops = 0.0
    with torch.no_grad():
        for a, b in shape.matrices():
            x, w = (torch.randn(n, a, device=device) for n in (tokens, b))
            spent += seconds(lambda x=x, w=w: torch.nn.functional.linear(x, w), device, 2)
            flops += 2.0 * tokens * a * b
    return flops / spent


def peak_rate(device: str, *, quick: bool = False) -> float:
    """FLOP/s of one large square product."""
    n = 256 if quick else 8192 if device.startswith("cuda") else 2048
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    return 2.0 * n**3 / seconds(lambda: a @ b, device)


def read_rate(device: str, *, quick: bool = False) -> float:
    """Bytes/s at which a tensor larger than any cache is summed."""
    x = torch.ones(1 << (20 if quick else 28), device=device)
    return x.nbytes / seconds(x.sum, device)


def facts(device: str, *, quick: bool) -> dict[str, Any]:
    """What rows that belong to one page have in common."""
    files = sorted(Path(mechforget.__file__).parent.rglob("*.py"))
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    return {
        "processor": _processor() if device == "cpu" else torch.cuda.get_device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "quick": quick,
        "versions": {name: version(name) for name in PACKAGES},
        "mechforget": code.hexdigest()[:12],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def load() -> float:
    """Other work on this machine, in busy cores, before the command began."""
    return os.getloadavg()[0]
