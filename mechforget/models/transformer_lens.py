"""TransformerLens backend: a TransformerBridge with raw weights (nothing folded or centred).

The only file that knows TransformerLens.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from mechforget.checkpoints.families import Family, family, is_latent, keeps_in_out
from mechforget.errors import ModelError
from mechforget.models.masks import arguments, largest
from mechforget.models.parts import owners, select
from mechforget.models.protocol import Point, Proof, Rewrite
from mechforget.models.rows import entering
from mechforget.models.sites import Spec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from torch import Tensor, nn

    from mechforget.models.parts import Owners

MIXTURE = ("router", "experts_in", "experts", "gate")  # TransformerLens has no hooks for these
BLOCK_HOOKS = {  # points whose hook name is the same in every family
    "resid_post": "hook_out",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "pattern": "attn.hook_pattern",
    "q_norm_in": "attn.q_norm.hook_in",
    "q_norm": "attn.q_norm.hook_out",
    "k_norm_in": "attn.k_norm.hook_in",
    "k_norm": "attn.k_norm.hook_out",
}
NORMS = {
    "q_norm": "attn.q_norm",
    "k_norm": "attn.k_norm",
    "attn_post": "ln1_post",
    "mlp_post": "ln2_post",
}
OUTPUT = "attn.o"
NORM = "NormalizationBridge"  # how the classes of its norms end


class Projection(NamedTuple):
    """The module that computes a head's q, k or v: `part` of each unit's share of its output."""

    module: str
    part: slice = slice(None)


def _projections(config: Any) -> dict[str, Projection]:
    if not is_latent(config):
        return {name: Projection(f"attn.{name}") for name in "qkv"}
    q = "q_proj" if getattr(config, "q_lora_rank", None) is None else "q_b_proj"
    both, nope = "attn.kv_b_proj", int(config.qk_nope_head_dim)
    k, v = Projection(both, slice(None, nope)), Projection(both, slice(nope, None))
    return {"q": Projection(f"attn.{q}"), "k": k, "v": v}


class TransformerLens:
    """Implements `protocol.Unproven`; `proof.prove` adds what makes it a `protocol.Model`."""

    spec: Spec
    proofs: tuple[Proof, ...] = ()
    journal: "Path | None" = None

    def __init__(self, hf_model: "nn.Module") -> None:
        """Wraps the module in place; no tokenizer and no hub are needed: measures pass ids."""
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        config: Any = hf_model.config
        try:
            self.module: Any = build_bridge_from_module(
                hf_model, type(hf_model).__name__, hf_config=config
            )
        except (ValueError, RuntimeError, AttributeError, KeyError, NotImplementedError) as error:
            reason = str(error).split("\n")[0].split(". Available")[0][:200]
            raise ModelError(
                f"TransformerLens cannot boot {type(hf_model).__name__}: {reason}; "
                "choose a supported architecture (mechforget doctor lists them)"
            ) from error
        self.config = config
        self.row = family(config.model_type)
        self.projections = _projections(config)
        self.heads = int(config.num_attention_heads)
        kv = getattr(config, "num_key_value_heads", None) or self.heads
        self.kv_heads = self.heads if is_latent(config) else int(kv)
        self.family = str(config.model_type)
        self.layers = len(self.module.blocks)
        self.nodes = largest(config) if self.row.packs else 0
        self.experts = 0
        self.parallel = "Parallel" in type(self.module.blocks[0]).__name__
        self.norms_heads_first = False  # q and k norms see [row, head, position, d]; set by prove
        self._hooks: dict[str, Any] = self.module.hook_dict
        bridges = (m for m in self.module.modules() if type(m).__name__.endswith(NORM))
        self.norms = [m for m in bridges if m.original_component is not None]

    @property
    def device(self) -> "torch.device":
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> str:
        return str(next(self.module.parameters()).dtype).removeprefix("torch.")

    def run(
        self,
        ids: "Tensor",
        rewrites: Mapping[Point, Rewrite],
        parent: "np.ndarray | None" = None,
    ) -> "Tensor":
        packed = arguments(self.config, parent, next(self.module.parameters()).dtype, ids.device)
        blocks = list(self.module.blocks)
        entry = {layer: fn for (layer, name), fn in rewrites.items() if name == "resid_pre"}
        hooks = [
            (self._hook(layer, name), self._adapt(name, fn))
            for (layer, name), fn in rewrites.items()
            if name != "resid_pre"
        ]
        handles = [
            block.register_forward_pre_hook(
                _entering(entry.get(i), ids.shape[0], self.heads, self.row, bool(packed)),
                with_kwargs=True,
            )
            for i, block in enumerate(blocks)
        ]
        try:
            with self.module.hooks(fwd_hooks=hooks), _plain_norms(self.norms):
                return self.module(ids, use_cache=False, **packed)
        finally:
            for handle in handles:
                handle.remove()

    def serves(self, layer: int, name: str) -> bool:
        """Whether there is a hook for this point."""
        if name in MIXTURE:
            return False
        return name == "resid_pre" or self._hook(layer, name) in self._hooks

    def _hook(self, layer: int, name: str) -> str:
        if name == "unembed":
            return "unembed.hook_in"
        if name in BLOCK_HOOKS:
            return f"blocks.{layer}.{BLOCK_HOOKS[name]}"
        within = name in ("z", "attn_raw")
        module = OUTPUT if within else self.projections[name.removesuffix("_in")].module
        end = "hook_in" if name == "z" or name.endswith("_in") else "hook_out"
        return f"blocks.{layer}.{module}.{end}"

    def _adapt(self, name: str, fn: Rewrite) -> Callable[..., Any]:
        """From TransformerLens's layout to the protocol's and back; values are not copied."""
        if name not in ("q", "k", "v", "z"):
            return lambda t, hook: fn(t)
        units = self.kv_heads if name in ("k", "v") else self.heads
        part = slice(None) if name == "z" else self.projections[name].part

        def adapted(t: "Tensor", hook: Any) -> "Tensor | None":
            whole = t.reshape(*t.shape[:2], units, -1)
            view = whole[..., part]
            new = fn(view)
            if new is None:
                return None
            if new is not view:  # else it was rewritten in place
                whole[..., part] = new
            return whole.reshape(t.shape)

        return adapted

    def weight(self, layer: int, matrix: str, head: int) -> "tuple[Tensor, Tensor | None]":
        if matrix == "W_O":
            w, _ = self._linear(layer, OUTPUT)
            return w.view(w.shape[0], self.heads, -1)[:, head], None
        name = {"W_Q": "q", "W_K": "k", "W_V": "v"}[matrix]
        module, part = self.projections[name]
        w, b = self._linear(layer, module)
        units = self.heads if name == "q" else self.kv_heads
        w = w.view(units, -1, w.shape[-1])[head, part]
        return w, None if b is None else b.view(units, -1)[head, part]

    def _linear(self, layer: int, module: str) -> "tuple[Tensor, Tensor | None]":
        """Weight [out, in] and bias; GPT-2's Conv1D keeps [in, out]."""
        linear = self._module(layer, module)
        w = linear.weight.T if keeps_in_out(linear) else linear.weight
        return w, linear.bias

    def _module(self, layer: int, path: str) -> Any:
        return self.module.get_submodule(f"blocks.{layer}.{path}").original_component

    def has(self, layer: int, name: str) -> bool:
        block: Any = self.module.blocks[layer]
        for part in NORMS[name].split("."):
            block = getattr(block, "_modules", {}).get(part)
        return block is not None

    def norm(self, layer: int, name: str, x: "Tensor") -> "Tensor":
        module = self.module.ln_final.original_component if name == "final" else None
        return (module or self._module(layer, NORMS[name]))(x)

    def norm_weight(self, layer: int, name: str) -> "Tensor | None":
        return getattr(self._module(layer, NORMS[name]), "weight", None)

    def per_head(self, name: str, x: "Tensor") -> "Tensor":
        """A q or k norm's input or output as [row, position, unit, d]; a view of x."""
        if self.norms_heads_first:
            return x.transpose(1, 2)
        return x.view(*x.shape[:2], self.kv_heads if name == "k_norm" else self.heads, -1)

    def expert_out(self, layer: int, expert: int, x: "Tensor", router: "Tensor") -> "Tensor":
        raise NotImplementedError("this backend has no site expert_out")

    def gate(self, layer: int) -> "Tensor":
        raise NotImplementedError("this backend has no point gate")

    def unembedding(self) -> "tuple[Tensor, Tensor | None]":
        linear = self.module.unembed.original_component
        return linear.weight, getattr(linear, "bias", None)

    def owners(self) -> "Owners":
        blocks = (
            (block.parameters(), block.mlp.parameters(), self._of_heads(index))
            for index, block in enumerate(self.module.blocks)
        )
        return owners(self.module.parameters(), blocks)

    def parameters(self, part: str, layer: int | None = None) -> "list[nn.Parameter]":
        return select(self.owners(), part, layer)

    def _of_heads(self, layer: int) -> "list[nn.Parameter]":
        modules = {projection.module for projection in self.projections.values()}
        modules |= {NORMS[n] for n in ("q_norm", "k_norm") if self.has(layer, n)}
        owned = [p for path in sorted(modules) for p in self._module(layer, path).parameters()]
        return [*owned, self._module(layer, OUTPUT).weight]


@contextmanager
def _plain_norms(norms: "list[nn.Module]") -> Iterator[None]:
    """Inside, a norm runs Hugging Face's own alone. TransformerLens computes its scale and its
    value beside that, for hooks that are no points here."""
    for norm in norms:  # a bridge passes attributes that are set on to the module that it wraps
        norm.__dict__["forward"] = partial(_normed, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["forward"]


def _normed(norm: Any, x: "Tensor", **_: Any) -> "Tensor":
    x = norm.hook_in(x)
    return norm.hook_out(norm.original_component(x).to(x.dtype))


def _entering(
    fn: Rewrite | None, base: int, heads: int, row: Family, packed: bool
) -> Callable[..., Any]:
    """Rewrites what enters a block; masks and positions follow the number of rows."""
    return lambda module, args, kwargs: entering(
        fn, (args, kwargs), base, heads, row, packed=packed
    )
