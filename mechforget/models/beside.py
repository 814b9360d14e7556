"""Functions of a model that run where the model is.

`@beside_the_model` marks a function whose first argument is a model. If that model is served, the
function runs on the server, in one request, and what it returns comes back; if not, it is called
as it is. Only the rooms in `ROOMS` are sent to a server, so only their functions may be marked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeGuard

from mechforget.errors import ModelError

if TYPE_CHECKING:
    from mechforget.models.nnsight import NNsight
    from mechforget.models.protocol import Model, Served


# What is sent to a server: these folders of the package, and these modules beside them.
ROOMS = ("models", "sweeps", "tasks", "checkpoints")
ALONE = ("errors", "progress", "shapes")


def is_served(model: "Model | Served") -> "TypeGuard[Served]":
    """True if the model is served, so that it is asked instead of called."""
    return hasattr(model, "ask")


def together(one: "Model | Served", other: "Model | Served") -> bool:
    """True if both models run in one place, so that nothing has to travel between them: on this
    machine, or on one deployment, which wears the adapter of the one or of the other."""
    return getattr(one, "deployment", None) == getattr(other, "deployment", None)


def reads_weights(recipient: "Model | Served", donor: "Model | Served") -> bool:
    """True if the donor's weights can be read where the recipient runs: both run in one place, or
    one server of the user's own has the files of both."""
    if together(recipient, donor):
        return True
    if not is_served(recipient) or not is_served(donor):
        return False
    return donor.adapter is None and recipient.own and recipient.url == donor.url


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
        if is_served(model):
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
def left_as_it_was(envoy: Any) -> Iterator[None]:
    """Inside, a backend may rewrite the model. Afterwards, it is as its other users know it."""
    from mechforget.models.llama4 import may_dispatch_routed

    with may_dispatch_routed(envoy._module):
        yield


def model(envoy: Any, state: dict[str, Any] | None) -> "NNsight":
    """A backend around a model that nnsight has wrapped already. It proves itself, unless `state`
    says what an earlier proof found."""
    import torch
    import transformers

    from mechforget.models.nnsight import NNsight, proven
    from mechforget.models.proof import supported
    from mechforget.models.protocol import Proof

    require("einops")
    if all(p.device.type == "meta" for p in envoy._module.parameters()):
        raise ModelError(
            "this server keeps requests in a sandbox, away from the weights: want one that trusts "
            "who asks (--trust trusted where it is started), or backend nnsight"
        )
    if state is None:
        with supported(envoy._module):
            found = proven(envoy._module, envoy)
        # The client's may be newer, and lay out or call a mixture's experts in another way.
        what = f"transformers {transformers.__version__} and torch {torch.__version__}"
        found.proofs += (Proof("the model was opened and proved on its server", True, what),)
        return found
    found = NNsight(envoy._module, state["order"], envoy)
    found.spec, found.norms_heads_first = state["spec"], state["norms_heads_first"]
    return found


@contextmanager
def wearing(worn: "NNsight", adapter: str | None) -> Iterator["NNsight"]:
    """The same deployment with another adapter, or with none. Afterwards, the given model is as it
    was; the model that was lent can still read its weights, but it can't be run."""
    envoy: Any = worn.envoy
    own = getattr(envoy, "peft", None)
    if own == adapter:
        yield worn
        return
    envoy.load_adapter(adapter)
    try:
        yield model(envoy, described(worn))
    finally:
        envoy.load_adapter(own)


@cache
def opened_for_weights(name: str, dtype: str) -> "NNsight":
    """Another model of this server, opened for its weights: each stays in its file until it is
    read."""
    from mechforget.checkpoints.checkpoint import open
    from mechforget.models.nnsight import NNsight

    return NNsight(open(name).load(dtype=dtype, device="disk"), {})


@beside_the_model
def described(model: "NNsight") -> dict[str, Any]:
    """What later questions need to know of a model, so that it proves itself only once."""
    names = ("spec", "proofs", "order", "norms_heads_first", "parallel", "dtype")
    return {name: getattr(model, name) for name in names}
