"""A module's forward replaced by another, for good or for as long as a request takes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

WRAPPED = "__nnsight__"  # where nnsight keeps the forward of a module that it has wrapped


def replace_forward(module: "nn.Module", forward: Any) -> None:
    """In place. Doing it twice is the same as once.

    The class is replaced, because nnsight runs the class's forward under accelerate's hooks (which
    bring offloaded weights). What nnsight and accelerate have kept of the old one is replaced too.
    """
    if type(module).forward is forward:
        return
    module.__class__ = _with_forward(type(module), forward)
    if "_old_forward" in module.__dict__:
        module._old_forward = MethodType(forward, module)  # type: ignore[assignment]  # accelerate's
    if (wrapped := module.__dict__.get(WRAPPED)) is not None:
        wrapped.body = forward


@contextmanager
def restored(modules: "Iterable[nn.Module]") -> Iterator[None]:
    """Afterwards, the modules run what they ran before, whatever was replaced in between."""
    before = [
        (m, type(m), m.__dict__.get("_old_forward"), getattr(m.__dict__.get(WRAPPED), "body", None))
        for m in modules
    ]
    try:
        yield
    finally:
        for module, kind, old, body in before:
            module.__class__ = kind
            if old is not None:
                module._old_forward = old
            if body is not None:
                module.__dict__[WRAPPED].body = body


@cache
def _with_forward(kind: type, forward: Any) -> type:
    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
