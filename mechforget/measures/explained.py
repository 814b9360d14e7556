"""What a result says of itself: a unit and a name for every number, and how it was measured."""

import inspect
import json
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

UNITS = {"log_prob": "nats", "logit_diff": "nats", "correct": "share", "preferred": "share"}


def described(found: "xr.Dataset", source: str, /, **variables: tuple[str, str]) -> "xr.Dataset":
    """The dataset with the attribute `source`, and its variables with `units` and `long_name`.

    Args: source: the paper, or its number on arXiv. variables: name = (units, long_name); "1" is
        the unit of a number without one. Names that the dataset lacks are ignored: some variables
        exist for mixtures of experts or for sequences only.
    A variable with an axis `metric` holds more than one unit: `units` is that of log_prob, and the
    attribute `units_by_metric` has the unit of each metric, as JSON.
    """
    found = found.assign_attrs(source=source)
    for name, (units, long_name) in variables.items():
        if name not in found.variables:
            continue
        attrs = {"units": units, "long_name": long_name}
        if "metric" in found[name].dims:
            metrics = [str(metric) for metric in found["metric"].values]
            units_of = UNITS
            if "unit" in found.coords:  # a metric of one's own brings its unit along
                units_of = dict(zip(metrics, map(str, found["unit"].values), strict=True))
            by_metric = {metric: units_of[metric] for metric in metrics}
            attrs["units_by_metric"] = json.dumps(by_metric)
        found[name].attrs.update(attrs)
    return found


def explained(fn: "Callable[..., xr.Dataset]") -> "Callable[..., xr.Dataset]":
    """Writes into the dataset that fn returns which measure made it, and with which settings: the
    attributes `measure` and `settings`."""

    @wraps(fn)
    def public(*args: Any, **settings: Any) -> "xr.Dataset":
        settings = kept(settings)
        found = fn(*args, **settings)
        return found.assign_attrs(measure=fn.__name__, settings=settings_text(fn, settings))

    return public


def kept(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with a list for each iterator: it could be read only once."""
    return {k: list(v) if hasattr(v, "__next__") else v for k, v in settings.items()}


def settings_text(fn: Callable[..., Any], given: dict[str, Any]) -> str:
    """All keyword-only arguments of fn as JSON: those that were given, and the others' defaults.

    Large inputs (tasks, models, arrays) are named or described.
    """
    every = {
        name: given.get(name, parameter.default)
        for name, parameter in inspect.signature(fn).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return json.dumps(every, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """What JSON has no form for: a task by its source, an array by its sizes, any other collection
    as a list."""
    import numpy as np

    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "sizes"):
        return "array of " + ", ".join(f"{n} {name}" for name, n in value.sizes.items())
    if hasattr(value, "n_prompts"):
        return f"{value.n_prompts} prompts"
    if hasattr(value, "source"):
        return value.source
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Iterable):
        return list(value)
    return getattr(value, "__name__", type(value).__name__)
