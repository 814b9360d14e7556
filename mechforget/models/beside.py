"""Functions of a model that run where the model is.

`@beside_the_model` marks a function whose first argument is a model: of a served model it is run on
the server, in one request, and what it returns comes back; of any other it is called as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from mechforget.errors import ModelError

if TYPE_CHECKING:
    from mechforget.models.nnsight import NNsight


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
    @wraps(fn)
    def anywhere(model: Any, *args: Any, **kwargs: Any) -> Any:
        if elsewhere(model):
            return model.ask(f"{fn.__module__}:{fn.__name__}", *args, **kwargs)
        return fn(model, *args, **kwargs)

    return anywhere


def model(envoy: Any, state: dict[str, Any] | None) -> "NNsight":
    """A backend around a model that is already traced; proven, or as `state` says it was."""
    from mechforget.models.nnsight import NNsight
    from mechforget.models.proof import prove, reference

    if all(p.device.type == "meta" for p in envoy._module.parameters()):
        raise ModelError(
            "this server keeps requests in a sandbox, away from the weights: want one that trusts "
            "who asks (--trust trusted where it is started), or backend nnsight"
        )
    if state is None:
        expected = reference(envoy._module)
        found = NNsight(envoy._module, expected.order, envoy)
        prove(found, expected)
        return found
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
        yield model(envoy, described(worn))
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
