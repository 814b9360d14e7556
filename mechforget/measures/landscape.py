"""The loss landscape by its derivatives: how sharply the loss bends at each checkpoint.

L is the mean over prompts of −Σ log p of the right answer's tokens, nats, of the task that is
given: the old one, or the new one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechforget.measures.explained import described, explained
from mechforget.measures.forgetting import AT
from mechforget.measures.inputs import Inputs, measure
from mechforget.models.beside import is_served
from mechforget.statistics import interval
from mechforget.sweeps.curvature import (
    eigenvalues,
    gauss_newton_trace,
    require_curvature,
    traces,
)
from mechforget.sweeps.gradients import PartOfLayer

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.tasks import Encoded

BOUNDS = ("estimate", "low", "high")
DESCRIPTIONS = {
    "eigenvalue": "largest eigenvalues of the Hessian of the loss",
    "residual": "error bound of the eigenvalue",
    "sample": "Hutchinson's samples of a module's trace",
    "module_trace": "trace of a module's Hessian",
    "module_trace_se": "standard error of the module's trace",
    "trace": "trace of the Hessian",
    "trace_se": "standard error of the trace",
    "gauss_newton_sample": "Hutch++'s samples of the Gauss-Newton matrix's trace",
    "gauss_newton": "trace of the Gauss-Newton matrix",
    "gauss_newton_se": "standard error of the Gauss-Newton matrix's trace",
}
CURVATURE = "nats per weight²"


@measure
def curvature(
    inputs: Inputs,
    *,
    parts: Sequence[PartOfLayer] | None = None,
    prompts: int = 16,
    top: int = 1,
    probes: int = 8,
    products: int = 9,
    memory: float = 5.0,
    seed: int = 0,
) -> "xr.Dataset":
    """Curvature of L at pre and at post: the largest eigenvalues of the Hessian, and traces of the
    whole Hessian and of each module's block.

    Args: parts: (part, layer) of `Model.parameters`: ("attention", 3), ("mlp", 3), ("rest", None);
        None: all of them, the whole model. The Hessian is that of these weights together. prompts:
        the number of prompts drawn for it. top: the number of eigenvalues; 0: none. probes: the
        number of Hutchinson's probes, which are the same at pre, at post and for every module.
        products: the number of Hutch++'s products. memory: GB that Lanczos may use. The defaults
        take some 60 products in all, each 5 to 7 seconds of one core on SmolLM2-135M.
    Returns: nats per weight², with `at` = pre, post:
        `eigenvalue`, `residual`, `converged` (at, rank): the largest first; a true eigenvalue lies
        within `residual`; NaN where Lanczos stopped before it converged, and `note` says so.
        `sample` (at, module, probe): z_i · (H z)_i; `module_trace`, `module_trace_se` (at, module)
        and `trace`, `trace_se` (at): its mean, and that of its sum over modules, with the standard
        error over probes. `gauss_newton_sample` (at, draw), `gauss_newton`, `gauss_newton_se` (at):
        that matrix's trace, from Hutch++ with one of its last products each.
        `module`'s coordinates: `part`, `layer` (-1: no layer). `chosen`: the prompts.
    Raises: SweepError: weights on the disk or in half precision, attention that isn't eager, too
        little memory for the vectors that Lanczos keeps, or a server without scipy (top=0 needs
        none).
    Source: Ghorbani et al. 2019, 1901.10159; Hutchinson 1990; Meyer et al. 2021, 2010.09649. Blind:
        scale a layer up and the next one down, and the function stays while its curvature changes;
        the errors are of the estimates on these prompts, not of other prompts.
    Examples:
        >>> trace = curvature(same, prompts=2, probes=2).trace
        >>> bool(np.isclose(*trace))  # one model, one curvature
        True
    """
    import xarray as xr

    encoded, chosen = _drawn(inputs.encoded, prompts, seed)
    layers = range(inputs.post.spec.layers)
    every = [(part, layer) for layer in layers for part in ("attention", "mlp")] + [("rest", None)]
    parts = every if parts is None else list(parts)
    both = (inputs.pre, inputs.post)
    for model in both:
        if not is_served(model):  # a served one says so itself
            require_curvature(model)
    lanczos = [eigenvalues(m, encoded, parts, top=top, memory=memory, seed=seed) for m in both]
    sample = np.stack([traces(m, encoded, parts, probes=probes, seed=seed) for m in both])
    within, left = zip(
        *(gauss_newton_trace(m, encoded, parts, products=products, seed=seed) for m in both),
        strict=True,
    )
    value = np.stack([found.value for found in lanczos])
    whole = sample.sum(1)
    bent = np.array(within)[:, None] + np.stack(left)
    found = {
        "eigenvalue": (("at", "rank"), value),
        "residual": (("at", "rank"), np.stack([found.residual for found in lanczos])),
        "sample": (("at", "module", "probe"), sample),
        "module_trace": (("at", "module"), sample.mean(-1)),
        "module_trace_se": (("at", "module"), standard_error(sample)),
        "trace": ("at", whole.mean(-1)),
        "trace_se": ("at", standard_error(whole)),
        "gauss_newton_sample": (("at", "draw"), bent),
        "gauss_newton": ("at", bent.mean(-1)),
        "gauss_newton_se": ("at", standard_error(bent)),
    }
    lost = int(np.isnan(value).sum())
    note = f"Lanczos stopped before {lost} of {value.size} eigenvalues converged" if lost else ""
    result = xr.Dataset(
        found,
        coords={
            "at": list(AT),
            "module": [f"{part}.{'all' if layer is None else layer}" for part, layer in parts],
            "part": ("module", [part for part, _ in parts]),
            "layer": ("module", [-1 if layer is None else layer for _, layer in parts]),
            "rank": range(top),
            "chosen": chosen,
        },
        attrs={
            "seed": seed,
            "products": str([found.products for found in lanczos]),
            "note": note,
        },
    ).assign(converged=(("at", "rank"), np.isfinite(value)))
    named = {name: (CURVATURE, said) for name, said in DESCRIPTIONS.items()}
    return described(result, "1901.10159", converged=("1", "whether Lanczos converged"), **named)


@explained
def flattening(found: "xr.Dataset", *, seed: int = 0) -> "xr.Dataset":
    """post / pre of what `curvature` found: below 1 the landscape got flatter.

    Returns: `ratio` (quantity, bound). trace: a 95 % BCa bootstrap over probes, whose errors at pre
        and post go together (the same probes); it needs 8. gauss_newton: by its two standard
        errors (delta method, Student's t). eigenvalue: what its residuals allow, which is no
        sampling error. None of them speaks of other prompts or seeds. NaN where pre's isn't
        positive.
    Examples:
        >>> found = flattening(curvature(same, prompts=2, probes=8))
        >>> [round(x, 4) for x in found.ratio.sel(bound="estimate").values.tolist()]  # one model
        [1.0, 1.0, 1.0]
    """
    import xarray as xr
    from scipy.stats import t as student

    pre, post = (found.sel(at=at) for at in AT)
    whole = {at: found["sample"].sel(at=at).sum("module").values for at in AT}
    ratio = np.full((3, 3), np.nan)
    if float(pre.trace) > 0:
        probes = np.arange(found.sizes["probe"])
        ratio[0] = interval(whole["post"], probes, over=whole["pre"], seed=seed)
    if float(pre.gauss_newton) > 0:
        value = float(post.gauss_newton / pre.gauss_newton)
        a, b = (float(x.gauss_newton_se / x.gauss_newton) for x in (pre, post))
        error = student.ppf(0.975, found.sizes["draw"] - 1) * abs(value) * float(np.hypot(a, b))
        ratio[1] = value, value - error, value + error
    (before, off), (after, by) = (
        (float(x.eigenvalue[0]), float(x.residual[0])) if found.sizes["rank"] else (0.0, 0.0)
        for x in (pre, post)
    )
    if before > off:
        low, high = after - by, after + by
        least = low / (before + float(np.sign(low)) * off)
        ratio[2] = after / before, least, high / (before - float(np.sign(high)) * off)
    quantity = ["trace", "gauss_newton", "eigenvalue"]
    coords = {"quantity": quantity, "bound": list(BOUNDS)}
    found = xr.Dataset({"ratio": (("quantity", "bound"), ratio)}, coords)
    return described(found, "1901.10159", ratio=("1", "curvature at post over curvature at pre"))


def _drawn(encoded: "Encoded", prompts: int, seed: int) -> "tuple[Encoded, np.ndarray]":
    """So many prompts, or all there are, and which."""
    n = min(prompts, encoded.n_prompts)
    chosen = np.sort(np.random.default_rng(seed).choice(encoded.n_prompts, n, replace=False))
    return encoded.subset(chosen), chosen


def standard_error(samples: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the last axis; NaN of one sample."""
    n = samples.shape[-1]
    if n < 2:
        return np.full(samples.shape[:-1], np.nan)
    return samples.std(-1, ddof=1) / n**0.5
