"""The server's side of a question: it runs beside the served model.

The text of this file is sent with every request, and so is the package's, because the server has
neither. A question is plain data: the name of a function, and arguments made of numbers, strings,
tuples and tensors.
"""

import importlib
import importlib.abc
import importlib.util
import linecache
import sys
from dataclasses import fields, is_dataclass
from typing import Any

ROOT = "mechforget"


class Shipped(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the package from text. Its modules are as they are here; its folders have an empty
    __init__, since what those import is for the client, and needs libraries that a server may not
    have."""

    def __init__(self, sources: dict[str, str], version: str) -> None:
        self.sources, self.version = sources, version

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != ROOT:
            return None
        room = name not in self.sources
        if room and not any(known.startswith(f"{name}.") for known in self.sources):
            return None
        return importlib.util.spec_from_loader(name, self, is_package=room)

    def exec_module(self, module: Any) -> None:
        text = self.sources.get(module.__name__)
        if text is None:
            return
        exec(compile(text, self.file(module.__name__), "exec"), module.__dict__)

    def file(self, name: str) -> str:
        return f"<{self.version}>/{name}"


def install(sources: dict[str, str], version: str) -> None:
    """Make this client's version of the package importable, in place of any other client's."""
    shipped = Shipped(sources, version)
    for name, text in sources.items():  # nnsight reads a trace's source; servers clear these
        file = shipped.file(name)
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    for finder in [f for f in sys.meta_path if type(f).__name__ == "Shipped"]:
        if finder.version == version:  # type: ignore[attr-defined]  # only ours are asked
            return
        sys.meta_path.remove(finder)
    for name in [n for n in sys.modules if n == ROOT or n.startswith(f"{ROOT}.")]:
        del sys.modules[name]
    sys.meta_path.insert(0, shipped)


def pack(value: Any) -> Any:
    """A value as nested tuples (kind, content); a dataclass as its module, name and fields.

    Raises: TypeError: something other than plain data."""
    if is_dataclass(value) and not isinstance(value, type):
        where = f"{type(value).__module__}:{type(value).__name__}"
        return ("dataclass", where, {f.name: pack(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, dict):
        return ("dict", [(pack(k), pack(v)) for k, v in value.items()])
    if isinstance(value, tuple | list):
        return (type(value).__name__, [pack(v) for v in value])
    if isinstance(value, frozenset):
        return ("frozenset", sorted(value))
    if type(value).__name__ == "ndarray":
        import torch

        return ("ndarray", torch.as_tensor(value))
    if type(value).__module__ == "numpy":
        return ("as it is", value.item())  # type: ignore[union-attr]  # numpy scalars have it
    if value is None or isinstance(value, bool | int | float | str) or hasattr(value, "dtype"):
        return ("as it is", value)
    raise TypeError(f"a {type(value).__name__} can't be sent to a server: want plain data")


def unpack(packed: Any) -> Any:
    """The inverse of `pack`. Raises: one of Python's own errors, if `pack` didn't make this."""
    kind, *rest = packed
    if kind == "dataclass":
        given = {key: unpack(v) for key, v in rest[1].items()}
        return _dataclass(rest[0])(**given)
    if kind == "dict":
        return {unpack(k): unpack(v) for k, v in rest[0]}
    if kind in ("tuple", "list"):
        return {"tuple": tuple, "list": list}[kind](unpack(v) for v in rest[0])
    if kind == "frozenset":
        return frozenset(rest[0])
    if kind == "ndarray":
        return rest[0].numpy()
    if kind == "as it is":
        return rest[0]
    raise TypeError(f"came {kind!r}, want a kind that pack gives")


def _dataclass(where: str) -> Any:
    """The dataclass of that name. A server chooses the name, so anything else is refused: it must
    not decide what is imported or called here."""
    module, _, name = where.partition(":")
    if module.startswith(f"{ROOT}."):
        made = getattr(importlib.import_module(module), name, None)
        if isinstance(made, type) and is_dataclass(made) and made.__module__ == module:
            return made
    raise TypeError(f"came {where}, want a dataclass of {ROOT}")


def answer(envoy: Any, question: tuple[Any, ...]) -> Any:
    """What a function returns for the model. question: (function, what `beside.described` returned
    for this model, or None, args, kwargs)."""
    function, state, args, kwargs = unpack(question)
    beside = importlib.import_module(f"{ROOT}.models.beside")
    module, _, name = function.partition(":")
    fn = getattr(importlib.import_module(module), name)
    with beside.left_as_it_was(envoy):
        return pack(fn(beside.model(envoy, state), *args, **kwargs))
