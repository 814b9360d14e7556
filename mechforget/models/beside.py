"""Functions of a model that run where the model is.

`@beside_the_model` marks a function whose first argument is a model. If that model is served, the
function runs on the server, in one request, and what it returns comes back; if not, it is called
as it is. Only the rooms in `ROOMS` are sent to a server, so only their functions may be marked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mechforget.errors import ModelError

if TYPE_CHECKING:
    from mechforget.models.nnsight import NNsight


# What is sent to a server: these folders of the package, and these modules beside them.
ROOMS = ("models", "sweeps", "tasks", "checkpoints")
ALONE = ("errors", "progress", "shapes")


def elsewhere(model: Any) -> bool:
    """Whether it is a served one, which is asked instead of called."""
    return hasattr(model, "ask")


def together(one: Any, other: Any) -> bool:
    """Whether both run in one place, so that nothing of one has to travel to the other: here, or on
    one deployment, which wears the adapter of one or the other."""
    return getattr(one, "deployment", None) == getattr(other, "deployment", None)


def reads_weights(recipient: Any, donor: Any) -> bool:
    """Whether the donor's weights can be had where the recipient runs: both run in one place, or
    one server of the user's own has the files of both."""
    if together(recipient, donor):
        return True
    if not (elsewhere(recipient) and elsewhere(donor)) or donor.adapter is not None:
        return False
    return recipient.own and recipient.url == donor.url


def beside_the_model(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Raises: TypeError: the function's module isn't sent to servers."""
    package, _, module = fn.__module__.partition(".")
    if package != "mechforget" or module.partition(".")[0] not in ROOMS:
        rooms = ", ".join(f"mechforget/{room}/" for room in ROOMS)
        raise TypeError(
            f"{fn.__module__}.{fn.__name__} can't run beside a served model, because its module "
            f"isn't sent to servers: move it to one of {rooms}"
        )

    @wraps(fn)
    def anywhere(model: Any, *args: Any, **kwargs: Any) -> Any:
        if elsewhere(model):
            return model.ask(f"{fn.__module__}:{fn.__name__}", *args, **kwargs)
        return fn(model, *args, **kwargs)

    return anywhere


def require(library: str) -> None:
    """Raises: ModelError: a library that sweeps need isn't installed where the model is."""
    if find_spec(library) is None:
        raise ModelError(
            f"the server has no {library}: install it there (pip install {library}), or use "
            "backend nnsight"
        )


@contextmanager
def model(envoy: Any, state: dict[str, Any] | None) -> Iterator["NNsight"]:
    """A backend around a model that nnsight has wrapped already; proven, or as `state` says it was.
    Other users share the model, so it is left as it was."""
    from mechforget.models.llama4 import may_dispatch_routed

    require("einops")
    if all(p.device.type == "meta" for p in envoy._module.parameters()):
        raise ModelError(
            "this server keeps requests in a sandbox, away from the weights: want one that trusts "
            "who asks (--trust trusted where it is started), or backend nnsight"
        )
    with may_dispatch_routed(envoy._module):
        yield _around(envoy, state)


def _around(envoy: Any, state: dict[str, Any] | None) -> "NNsight":
    from mechforget.models.nnsight import NNsight, proven

    if state is None:
        return proven(envoy._module, envoy)
    found = NNsight(envoy._module, state["order"], envoy)
    found.spec, found.norms_heads_first = state["spec"], state["norms_heads_first"]
    return found


@contextmanager
def wearing(worn: "NNsight", adapter: str | None) -> Iterator["NNsight"]:
    """The same deployment with another adapter, or without (None). Afterwards, the model that was
    given is as it was, and the one that was lent still knows its weights, but can't be run."""
    envoy: Any = worn.envoy
    own = getattr(envoy, "peft", None)
    if own == adapter:
        yield worn
        return
    envoy.load_adapter(adapter)
    try:
        yield _around(envoy, described(worn))
    finally:
        envoy.load_adapter(own)


@cache
def filed(name: str, dtype: str) -> "NNsight":
    """Another model of this server, for its weights: they stay in its files until one is wanted."""
    from mechforget.checkpoints.checkpoint import open
    from mechforget.models.nnsight import NNsight

    return NNsight(open(name).load(dtype=dtype, device="disk"), {})


@beside_the_model
def described(model: Any) -> dict[str, Any]:
    """What a later question needs, so that a model proves itself once."""
    names = ("spec", "proofs", "order", "norms_heads_first", "parallel", "dtype")
    return {name: getattr(model, name) for name in names}
