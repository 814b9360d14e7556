"""nnsight backend: traces a Hugging Face model where its weights are, on one device, on several, or
on the disk.

Only this file knows how nnsight traces. All rewrites are applied in one trace, in the order in
which the model's modules run; a plain forward pass has recorded it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from mechforget.checkpoints.families import family, keeps_in_out
from mechforget.checkpoints.placement import device_of, tensor
from mechforget.models import half
from mechforget.models.llama4 import dispatch_routed
from mechforget.models.masks import arguments, largest
from mechforget.models.modules import Layer, find, owned
from mechforget.models.parts import select
from mechforget.models.proof import prove, reference
from mechforget.models.protocol import Point, Proof, Rewrite
from mechforget.models.rows import entering
from mechforget.models.sites import Spec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from torch import Tensor, nn

    from mechforget.models.parts import Owners

Stop = tuple[str, str]  # where a trace stops: a module's path, and "in", "out" or "pattern"


class NNsight:
    """Implements `protocol.Unproven`; `proof.prove` adds what makes it a `protocol.Model`."""

    spec: Spec
    proofs: tuple[Proof, ...] = ()
    journal: "Path | None" = None

    def __init__(self, hf_model: "nn.Module", order: Mapping[Stop, int], envoy: Any = None) -> None:
        """order: stop -> when a plain forward pass came by it (`proof.reference`). envoy: of a
        model that is served. Llama 4's mixtures are rewritten in place, in both cases."""
        import nnsight

        dispatch_routed(hf_model)
        self.module: Any = hf_model
        self.modules = find(hf_model)
        # An adapter's layers by path: they know what they add, also after they were taken off.
        named = hf_model.named_modules()
        self.added: dict[str, Any] = {n: m for n, m in named if hasattr(m, "get_delta_weight")}
        self.envoy: Any = nnsight.NNsight(hf_model) if envoy is None else envoy
        self.order = order
        self.heads, self.kv_heads = self.modules.heads, self.modules.kv_heads
        self.family = str(hf_model.config.model_type)  # type: ignore[union-attr]  # transformers'
        self.layers = len(self.modules.layers)
        self.parallel = self.modules.parallel
        self.text: Any = hf_model.config.get_text_config()  # type: ignore[union-attr]  # transformers'
        self.row = family(self.text.model_type)
        self.nodes = largest(self.text) if self.row.packs else 0
        counts = (getattr(self.text, name, None) for name in self.row.n_experts)
        self.experts = next((int(n) for n in counts if n), 0)
        self.norms_heads_first = False  # q and k norms see [row, head, position, d]; set by prove

    @property
    def device(self) -> "torch.device":
        return device_of(self.module)

    @property
    def dtype(self) -> str:
        return str(next(self.module.parameters()).dtype).removeprefix("torch.")

    def run(
        self,
        ids: "Tensor",
        rewrites: Mapping[Point, Rewrite],
        parent: "np.ndarray | None" = None,
    ) -> "Tensor":
        packed = arguments(self.text, parent, next(self.module.parameters()).dtype, ids.device)
        rows, positions = ids.shape
        stops = self._stops(rewrites, rows, positions, bool(packed))
        for (path, end), _ in stops:
            if end == "pattern":  # a forward that has begun can't be taken apart any more
                _ = self.envoy.get(path.rpartition(".")[0]).source
        with self.envoy.trace(ids, use_cache=False):
            if packed:  # where the model begins: a server's nnsight takes no dict of masks
                args, kwargs = self.envoy.inputs
                self.envoy.inputs = args, {**kwargs, **packed}
            for stop, change in stops:
                self._visit(stop, change)
            logits = self.envoy.output.logits.save()
        return logits

    def _stops(
        self, rewrites: Mapping[Point, Rewrite], base: int, positions: int, packed: bool
    ) -> list[tuple[Stop, Callable[[Any], Any]]]:
        """Where the trace reads and writes, in the order of execution."""
        at: dict[Stop, list[Callable[[Any], Any]]] = defaultdict(list)
        grows = [layer for layer, name in rewrites if name == "resid_pre"]
        for layer in range(min(grows, default=self.layers), self.layers):
            fn = rewrites.get((layer, "resid_pre"))
            enter = partial(entering, fn, base=base, heads=self.heads, row=self.row, packed=packed)
            at[self.modules.layers[layer].path, "in"].append(enter)
        for (layer, name), fn in rewrites.items():
            if name == "unembed":
                at[self.modules.head, "in"].append(_first_input(fn))
            elif name != "resid_pre":
                found = self.modules.layers[layer]
                at[self._stop(found, name)].append(self._change(found, name, fn, positions))
        steps = sorted(at.items(), key=lambda step: self._when(step[0]))
        return [(stop, _each(changes)) for stop, changes in steps]

    def _when(self, stop: Stop) -> float:
        path, end = stop
        return self.order[path, "in"] - 0.5 if end == "pattern" else self.order[stop]

    def _stop(self, layer: Layer, name: str) -> Stop:
        return (layer.o, "pattern") if name == "pattern" else layer.at[name]

    def _visit(self, stop: Stop, change: Callable[[Any], Any]) -> None:
        """Inside a trace: waits until the model reaches the stop, and writes the changed value."""
        path, end = stop
        if end == "pattern":
            weights = self._weights(path.rpartition(".")[0])
            weights.output = change(weights.output)
            return
        envoy = self.envoy.get(path)
        if end == "in":
            envoy.inputs = change(envoy.inputs)
        else:
            envoy.output = change(envoy.output)

    def _weights(self, attention: str) -> Any:
        """The operation inside eager attention whose output multiplies the values."""
        call = self.envoy.get(attention).source.attention_interface_1.source
        return call.node(next(name for name in call.names if "dropout_" in name))

    def _change(self, layer: Layer, name: str, fn: Rewrite, positions: int) -> Callable[[Any], Any]:
        """`fn` on a module's input or output: converts to the protocol's layout and back."""
        if name in ("router", "experts_in"):
            return lambda value: _routing(value, name, fn, positions)
        if name == "pattern":
            return _first(fn)
        if name == "gate":
            return _logits(fn, self.experts, positions)
        if name == "z":
            fn = _units(fn, lambda t: t.unflatten(-1, (self.heads, -1)))
        elif name in layer.splits:
            fn = _units(fn, layer.splits[name].view)
        if "_norm" not in name:  # those see heads, as `per_head` says
            fn = _tokens(fn, positions)
        return _first_input(fn) if layer.at[name][1] == "in" else _first(fn)

    def serves(self, layer: int, name: str) -> bool:
        """True if this point exists."""
        found = self.modules.layers[layer]
        if name == "pattern":
            return self._eager(found)
        return name in found.at and found.at[name] in self.order

    def _eager(self, layer: Layer) -> bool:
        """Whether attention is the plain one, whose weights can be reached."""
        attention = type(self.module.get_submodule(layer.attention))
        return self.module.config._attn_implementation == "eager" and _plain(attention)

    def weight(self, layer: int, matrix: str, head: int) -> "tuple[Tensor, Tensor | None]":
        found = self.modules.layers[layer]
        if matrix == "W_O":
            w, _ = self._linear(found.o)
            return w.unflatten(-1, (self.heads, -1))[:, head], None
        split = found.splits[{"W_Q": "q", "W_K": "k", "W_V": "v"}[matrix]]
        w, b = self._linear(split.module)
        return split.view(w.T)[:, head].T, None if b is None else split.view(b)[head]

    def _linear(self, path: str) -> "tuple[Tensor, Tensor | None]":
        """Weight [out, in], an adapter's part with it, and bias; GPT-2's Conv1D keeps [in, out]."""
        linear = self.module.get_submodule(path)
        w, b = tensor(linear, "weight"), tensor(linear, "bias")
        assert w is not None  # peft's layer gives that of the linear one inside it
        if adapter := self.added.get(path):
            w = w + adapter.get_delta_weight(*adapter.active_adapters).to(w)
        inside = getattr(linear, "base_layer", linear)
        return w.T if keeps_in_out(inside) else w, b

    def has(self, layer: int, name: str) -> bool:
        return name in self.modules.layers[layer].norms

    def norm(self, layer: int, name: str, x: "Tensor") -> "Tensor":
        weight = getattr(self.module.get_submodule(self._norm(layer, name)), "weight", None)
        if weight is not None and weight.device.type != "meta":  # else it fetches both itself
            x = x.to(weight.device)
        return self.envoy.get(self._norm(layer, name))(x)

    def _norm(self, layer: int, name: str) -> str:
        return self.modules.final if name == "final" else self.modules.layers[layer].norms[name]

    def norm_weight(self, layer: int, name: str) -> "Tensor | None":
        return tensor(self.module.get_submodule(self._norm(layer, name)), "weight")

    def per_head(self, name: str, x: "Tensor") -> "Tensor":
        """A q or k norm's input or output as [row, position, unit, d]; a view of x."""
        if self.norms_heads_first:
            return x.transpose(1, 2)
        return x.view(*x.shape[:2], self.kv_heads if name == "k_norm" else self.heads, -1)

    def expert_out(self, layer: int, expert: int, x: "Tensor", router: "Tensor") -> "Tensor":
        """What one expert adds, [row, position, d_model]: its output on x [row, position,
        d_model], weighted, where router [row, position, slot, (expert, weight)] chose it; else 0.
        """
        import torch

        experts = self.envoy.get(self.modules.layers[layer].experts)
        flat, chosen = x.flatten(0, 1), router.flatten(0, 1)
        out = torch.zeros_like(flat)
        token, slot = torch.where(chosen[..., 0] == expert)
        if len(token):
            index = torch.full((len(token), 1), expert, device=x.device)
            weight = chosen[token, slot, 1][:, None].to(x.dtype)
            out[token] = experts(flat[token], index, weight)
        return out.view(x.shape)

    def gate(self, layer: int) -> "Tensor":
        """The gate's rows [expert, d_model]."""
        path = self.modules.layers[layer].gate
        assert path is not None  # `serves` says which layers have one
        return self._linear(path)[0]

    def unembedding(self) -> "tuple[Tensor, Tensor | None]":
        return self._linear(self.modules.head)

    def owners(self) -> "Owners":
        return owned(self.module, self.modules)

    def parameters(self, part: str, layer: int | None = None) -> "list[nn.Parameter]":
        return select(self.owners(), part, layer)


def proven(hf_model: "nn.Module", envoy: Any = None) -> NNsight:
    """This backend around a model, after it has proved itself."""
    if half.half_precision(hf_model):
        # Another order of summing rounds differently in half precision, and two experts that nearly
        # tie would change places: the rewritten mixture is its own reference. In float32 the plain
        # one is.
        dispatch_routed(hf_model)
    expected = reference(hf_model)
    found = NNsight(hf_model, expected.order, envoy)
    prove(found, expected)
    return found


@cache
def _plain(attention: type) -> bool:
    """Whether this class multiplies values by weights where `_weights` looks for them."""
    import inspect
    import sys

    plain = getattr(sys.modules[attention.__module__], "eager_attention_forward", None)
    forward = inspect.getsource(attention.forward)  # type: ignore[attr-defined]  # a module's
    return (
        plain is not None
        and "dropout(" in inspect.getsource(plain)
        and "= attention_interface(" in forward
    )


def _each(changes: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def all_of(value: Any) -> Any:
        for change in changes:
            value = change(value)
        return value

    return all_of


def _first(fn: Rewrite) -> Callable[[Any], Any]:
    """`fn` on an output: on the tensor, or on the first of a tuple."""

    def change(value: Any) -> Any:
        whole = isinstance(value, tuple)
        new = fn(value[0] if whole else value)
        if new is None:
            return value
        return (new, *value[1:]) if whole else new

    return change


def _first_input(fn: Rewrite) -> Callable[[Any], Any]:
    """`fn` on the first of a call's arguments (args, kwargs)."""

    def change(value: Any) -> Any:
        args, kwargs = value
        if args:
            new = fn(args[0])
            return value if new is None else ((new, *args[1:]), kwargs)
        name = next(iter(kwargs))
        new = fn(kwargs[name])
        return value if new is None else (args, {**kwargs, name: new})

    return change


def _units(fn: Rewrite, view: "Callable[[Tensor], Tensor]") -> Rewrite:
    """`fn` on a view of the tensor that has an axis for heads."""

    def change(t: "Tensor") -> "Tensor | None":
        seen = view(t)
        new = fn(seen)
        if new is not None and new is not seen:  # else it was rewritten in place
            seen.copy_(new)
        return t

    return change


def _tokens(fn: Rewrite, positions: int) -> Rewrite:
    """`fn` on [row, position, d], where the module has all tokens on one axis, or an axis more."""

    def change(t: "Tensor") -> "Tensor | None":
        new = fn(t.view(-1, positions, t.shape[-1]))
        return None if new is None else new.view(t.shape)

    return change


def _logits(fn: Rewrite, experts: int, positions: int) -> Callable[[Any], Any]:
    """`fn` on the logits in a gate's output: (logits, weights, chosen), or, of Llama 4,
    (masked scores, logits)."""

    def change(value: Any) -> Any:
        parts = value if isinstance(value, tuple) else (value,)
        whole = [t for t in parts if t.shape[-1] == experts and t.is_floating_point()]
        logits = whole[-1] if len(parts) == 2 else whole[0]
        fn(logits.view(-1, positions, experts))
        return value

    return change


def _routing(value: Any, name: str, fn: Rewrite, positions: int) -> Any:
    """`fn` on what experts are called with: on `router` [row, position, slot, (expert, weight)], in
    float32, because bfloat16 can't tell expert numbers above 256 apart; or on `experts_in`."""
    import torch

    args, kwargs = value
    hidden, index, weight = (*args, *kwargs.values())[:3]
    if name == "experts_in":
        new = fn(hidden.view(-1, positions, hidden.shape[-1]))
        hidden = hidden if new is None else new.flatten(0, 1)
    else:
        decided = torch.stack([index.float(), weight.float()], -1)
        new = fn(decided.view(-1, positions, *decided.shape[1:]))
        if new is not None:
            new = new.flatten(0, 1)
            index, weight = new[..., 0].to(index.dtype), new[..., 1].to(weight.dtype)
    names = list(kwargs)[: 3 - len(args)]
    given = (hidden, index, weight)
    return given[: len(args)], {**kwargs, **dict(zip(names, given[len(args) :], strict=True))}
