"""What jaxtyping's import hook checks our functions with: the shapes, and nothing else."""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

# Functions whose arguments and results are arrays; a call with a wrong shape raises TypeCheckError.
CHECKED = (
    "mechforget.statistics",
    *(
        f"mechforget.measures.{name}"
        for name in ("attention_change", "drift", "readout", "routing", "spectra", "trajectory")
    ),
)


def install() -> None:
    """To be called before the package is imported."""
    install_import_hook(CHECKED, "tests.shapes.shapes_only")


def shapes_only(fn: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, for the annotations that name a shape. The others are pyright's, which also knows
    the types that are imported under TYPE_CHECKING."""
    named = fn.__annotations__
    fn.__annotations__ = {name: hint for name, hint in named.items() if _has_shape(hint)}
    return beartype(fn)


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_has_shape(inner) for inner in get_args(hint))
