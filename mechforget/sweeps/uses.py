"""One backward pass, visited module by module: what each module computed with its weights, and the
gradient with respect to its output. The gradients of weights are never formed or kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.errors import SweepError
from mechforget.models.cells import address
from mechforget.models.protocol import Model, Point, Rewrite
from mechforget.sweeps.donor import forward
from mechforget.sweeps.gradients import counted, requiring

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mechforget.tasks.encoded import Encoded


@dataclass(frozen=True)
class Use:
    """One call of a module that has weights of its own."""

    module: "nn.Module"
    own: "dict[str, nn.Parameter]"
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    grads: "list[Tensor | None]"  # with respect to each float output; None: unused
    prompt: "Tensor"  # [vector]: the prompt that each output vector belongs to

    @property
    def first(self) -> "Tensor":
        """Its first input."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    @property
    def x(self) -> "Tensor":
        """Its first input as [token, d], or [token] if it is token ids."""
        x = self.first
        if x.is_floating_point():
            return x.flatten(0, -2)
        return x.expand(len(self.prompt) // x.shape[-1], -1).flatten()

    @property
    def g(self) -> "Tensor":
        """The gradient with respect to its first output, [token, d]."""
        assert self.grads[0] is not None
        return self.grads[0].flatten(0, -2)


@dataclass(frozen=True)
class HeadOutput:
    """Σ over positions of what one head writes, times `pull` [row, position, d_model]."""

    layer: int
    head: int
    pull: "Tensor"


def backward(
    model: Model,
    encoded: "Encoded",
    visit: Callable[[Use], None],
    *,
    of: HeadOutput | None = None,
    rewrites: Mapping[Point, Rewrite] = {},
) -> np.ndarray:
    """One forward and one backward pass. `visit` is called with every module that has weights, as
    soon as the gradient with respect to its output is known. No row may hold several prompts.

    of: what is differentiated, summed over prompts; None: log_prob.
    Returns: what is differentiated, for each prompt.
    Raises: SweepError: the weights aren't in memory here.
    """
    import torch

    unembedded: list[Tensor] = []
    routed: dict[int, Tensor] = {}
    written: list[Tensor] = []
    read = encoded.read_at

    def only_read(t: "Tensor") -> "Tensor":
        unembedded.append(t[read][None])
        return unembedded[0]

    def remembered(layer: int, fn: Rewrite) -> Rewrite:
        def route(t: "Tensor") -> "Tensor | None":
            if (new := fn(t)) is not None:
                routed[layer] = new
            return new

        return route

    asked: dict[Point, Rewrite] = {
        (layer, name): remembered(layer, fn) if name == "router" else fn
        for (layer, name), fn in rewrites.items()
    }
    asked[model.spec.layers, "unembed"] = only_read
    if of is not None:
        asked[of.layer, "z"] = lambda t: _alone(t, of.head)
        asked[of.layer, "attn_raw"] = written.append
    with torch.enable_grad(), _watched(model, encoded, visit, unembedded, routed):
        logits = forward(model, encoded, asked)[0]
        if of is None:
            target, count = (
                torch.as_tensor(x, device=logits.device)
                for x in (encoded.read_target, counted(encoded, "log_prob"))
            )
            value = logits.float().log_softmax(-1)[range(len(target)), target] * count
            whose = encoded.read_prompt
        else:
            value = (written[0] * of.pull.to(written[0])).sum((1, 2))
            whose = encoded.fed_prompt
        torch.autograd.backward(value.sum())  # nnsight takes Tensor.backward for itself
    return np.bincount(whose, value.detach().double().cpu().numpy(), encoded.n_prompts)


def _alone(z: "Tensor", head: int) -> "Tensor":
    kept = z.new_zeros(z.shape)
    kept[:, :, head] = z[:, :, head]
    return kept


@contextmanager
def _watched(
    model: Model,
    encoded: "Encoded",
    visit: Callable[[Use], None],
    unembedded: "list[Tensor]",
    routed: "Mapping[int, Tensor]",
) -> Iterator[None]:
    """Inside, `visit` is called in the backward pass. unembedded, routed (layer -> router): what
    rewrites passed to the unembedding and to the experts, which module hooks don't see."""
    import torch

    owners = [m for m in model.module.modules() if m._parameters]
    if not model.spec.resident:
        raise SweepError("weights on the disk have no gradients: use a device that holds them")
    unembedding = address(model.unembedding()[0])
    own = [(m, p) for m in owners for p in m._parameters.values() if p is not None]
    head = [m for m, p in own if address(p) == unembedding][-1]
    experts = _experts(model)
    rows, positions = encoded.fed.shape
    of_row, of_read = (
        torch.as_tensor(x, device=model.device) for x in (encoded.fed_prompt, encoded.read_prompt)
    )
    busy = False  # a visitor may call the module again

    def prompts(g: "Tensor", last: bool) -> "Tensor":
        """Each vector's prompt, of a gradient whose first axis is rows, or rows × positions."""
        first, each = g.shape[0], g.shape[:-1].numel()
        if last:
            return of_read.to(g.device)
        if first not in (rows, rows * positions):
            raise SweepError(f"a gradient of shape {tuple(g.shape)} does not tell rows apart")
        return of_row.to(g.device).repeat_interleave(each // rows)

    waiting: list[Any] = []

    def seen(module: "nn.Module", args: Any, kwargs: Any, output: Any) -> Any:
        if busy:
            return None
        output = _apart(output, rows)
        given = floats(output)
        for t in given:
            if t.is_leaf and not t.requires_grad:
                t.requires_grad_()  # an embedding's: the graph begins there
        graph = [t for t in given if t.requires_grad]

        def done(known: "Sequence[Tensor | None]") -> None:
            nonlocal busy
            of = dict(zip(map(id, graph), known, strict=True))
            grads = [of.get(id(t)) for t in given]
            any_ = next((g for g in grads if g is not None), None)
            if any_ is None:
                return
            last = bool(unembedded) and module is head
            own = dict(module.named_parameters(recurse=False))
            busy = True
            try:
                with torch.no_grad():
                    got = tuple(unembedded) if last else args
                    if (router := routed.get(experts.get(module, -1))) is not None:
                        got = _rerouted(args, router)
                    whose = prompts(any_, last)
                    visit(Use(module, own, _detached(got), _detached(kwargs), grads, whose))
            finally:
                busy = False

        if graph:
            hook = torch.autograd.graph.register_multi_grad_hook(graph, done, mode="all")
            waiting.append(hook)
        return output

    handles = [m.register_forward_hook(seen, prepend=True, with_kwargs=True) for m in owners]
    try:
        with requiring(model, []):
            yield
    finally:
        for handle in (*handles, *waiting):  # a hook that stays holds its graph, which holds it
            handle.remove()


def _experts(model: Model) -> "dict[nn.Module, int]":
    """The modules that hold a mixture's experts, with their layer."""
    layer = {p: at for p, (_, at) in model.owners().items()}
    return {
        module: at
        for name, module in model.module.named_modules()
        if name.endswith("experts")
        for p in module._parameters.values()
        if p is not None and (at := layer[p]) is not None
    }


def _rerouted(args: tuple[Any, ...], router: "Tensor") -> tuple[Any, ...]:
    """Experts' arguments (hidden, chosen, weights, ...) with this routing in place of their own,
    [row, position, slot, 2]."""
    hidden, index, weight, *others = args
    flat = router.flatten(0, 1).to(weight.device)
    return hidden, flat[..., 0].to(index.dtype), flat[..., 1].to(weight.dtype), *others


def _apart(output: Any, rows: int) -> Any:
    """A module's output such that each part has its own gradient. One of several outputs may be
    computed from another (a gate's weights from its logits), so they are copied. One output for all
    rows (GPT-2's positions) is expanded, so that each row has its own."""
    from torch import Tensor

    if isinstance(output, tuple) and len(output) > 1:
        return tuple(
            t.clone() if isinstance(t, Tensor) and t.is_floating_point() else t for t in output
        )
    if isinstance(output, Tensor) and output.shape[0] == 1 < rows and not output.requires_grad:
        return output.expand(rows, *output.shape[1:]).clone()
    return output


def floats(output: Any) -> "list[Tensor]":
    """The float tensors of a module's output, in order."""
    from torch import Tensor

    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, tuple | list):
        return [t for value in output for t in floats(value)]
    return []


def _detached(value: Any) -> Any:
    from torch import Tensor

    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple | list):
        return type(value)(_detached(v) for v in value)
    if isinstance(value, Mapping):
        return {k: _detached(v) for k, v in value.items()}
    return value
