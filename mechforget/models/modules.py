"""Finds the sites of a Hugging Face model from its modules' names and structure.

`checkpoints.families` has the names, and what a family does differently. Nothing found here is
trusted: the backend that uses it has to prove itself on the model.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mechforget.checkpoints.families import BY_GROUP, BY_HEAD, Family, family, is_latent
from mechforget.errors import ModelError
from mechforget.models.parts import owners

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mechforget.models.parts import Owners


@dataclass(frozen=True)
class Split:
    """Where one unit's vector lies in the output x of a projection. x[..., start:stop] is reshaped
    to [..., unit, of, width], and [..., index, begin:end] of it is taken. `of` is the number of
    vectors that lie side by side in each unit: 3 where q, k and v are fused head by head."""

    module: str
    units: int
    start: int | None = None
    stop: int | None = None
    of: int = 1
    index: int = 0
    begin: int | None = None
    end: int | None = None

    def view(self, x: "Tensor") -> "Tensor":
        """[..., unit, d], sharing memory."""
        x = x[..., self.start : self.stop].unflatten(-1, (self.units, self.of, -1))
        return x[..., self.index, self.begin : self.end]


@dataclass(frozen=True)
class Layer:
    """Module paths of one block. `at`: point -> (module, "in" | "out")."""

    path: str
    attention: str
    mlp: tuple[str, ...]
    o: str
    splits: dict[str, Split]  # of q, k, v: those that are known
    norms: dict[str, str]  # q_norm, k_norm, attn_post, mlp_post
    at: dict[str, tuple[str, str]] = field(default_factory=dict)
    experts: str | None = None
    gate: str | None = None


@dataclass(frozen=True)
class Modules:
    layers: tuple[Layer, ...]
    heads: int
    kv_heads: int
    head: str  # the unembedding
    final: str  # the last norm
    parallel: bool  # attention and MLP both read the block's input


def find(model: "nn.Module") -> Modules:
    """Raises: ModelError: a part cannot be told from the model's structure; it says which."""
    config: Any = model.config
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    kv = int(getattr(text, "num_key_value_heads", None) or heads)
    stack, blocks = _stack(model, int(text.num_hidden_layers))
    row = family(text.model_type)
    layers = tuple(
        _layer(model, f"{stack}.{i}", block, text, heads, kv, row) for i, block in enumerate(blocks)
    )
    first = _kind(model, layers[0])
    for layer in layers[1:]:
        if _kind(model, layer) != first:
            raise ModelError(
                f"{type(model).__name__}: {layer.attention} is of another kind or width than "
                f"{layers[0].attention}, want one in all layers: this architecture is not "
                "supported; mechforget doctor lists those that are"
            )
    paths = {id(module): name for name, module in model.named_modules()}
    head = model.get_output_embeddings()  # type: ignore[operator]  # to types, an attribute is a tensor
    if id(head) not in paths:
        raise _unknown(model, "an unembedding (get_output_embeddings)")
    parent = stack.rpartition(".")[0]
    siblings = dict(model.get_submodule(parent).named_children())
    norms = [f"{parent}.{name}".lstrip(".") for name in row.final if name in siblings]
    if not norms:
        raise _unknown(model, f"a last norm ({', '.join(row.final)}) beside {stack}")
    block = blocks[0]
    parallel = bool(
        any(getattr(config, flag, False) for flag in row.parallel)
        or sum("norm" in n or n.startswith("ln") for n, _ in block.named_children()) == 1
    )
    kv = heads if is_latent(text) else kv
    return Modules(layers, heads, kv, paths[id(head)], norms[0], parallel)


def _stack(model: "nn.Module", n: int) -> "tuple[str, list[nn.Module]]":
    """The decoder's blocks: the first list that has as many modules as the config has layers."""
    for name, module in model.named_modules():
        if type(module).__name__ == "ModuleList" and len(module) == n:  # type: ignore[arg-type]  # by its name, a ModuleList
            return name, list(module.children())
    raise _unknown(model, f"a list of {n} blocks")


def _layer(
    model: "nn.Module",
    path: str,
    block: "nn.Module",
    config: Any,
    heads: int,
    kv: int,
    row: Family,
) -> Layer:
    children = dict(block.named_children())
    mlp = tuple(f"{path}.{name}" for name in row.mlp if name in children)
    inside = {name for name, _ in block.named_modules()}
    o = [
        name
        for name in inside
        if name.rpartition(".")[2] in row.output
        and "." in name
        and not any(name.startswith(f"{m}.") for m in row.mlp)
    ]
    if len(o) != 1 or not mlp:
        what = "an MLP" if len(o) == 1 else f"one attention output matrix ({', '.join(row.output)})"
        raise _unknown(model, f"{what} in {path}")
    attention = o[0].rpartition(".")[0]
    module = block.get_submodule(attention)
    splits = _splits(f"{path}.{attention}", module, config, heads, kv, row)
    norms = {
        name: f"{path}.{attention}.{child}"
        for name in ("q_norm", "k_norm")
        for child in (name, name.replace("norm", "layernorm"))
        if hasattr(module, child) and any(True for _ in getattr(module, child).parameters())
    }
    post = next((pair for pair in row.post_norms if pair[1] in children), ())
    named = zip(("attn_post", "mlp_post"), post, strict=False)  # most families have neither
    norms |= {name: f"{path}.{child}" for name, child in named if child in children}
    last = mlp[-1] if row.adds is None else f"{mlp[-1]}.{row.adds}"
    o_path = f"{path}.{o[0]}"
    at = {
        "resid_pre": (path, "in"),
        "z": (o_path, "in"),
        "attn_raw": (o_path, "out"),
        "attn_out": (norms.get("attn_post", o_path), "out"),
        "mlp_out": (norms.get("mlp_post", last), "out"),
        "resid_post": (path, "out"),
    }
    for name, split in splits.items():
        at |= {f"{name}_in": (split.module, "in"), name: (split.module, "out")}
    for name in ("q_norm", "k_norm"):
        if name in norms:
            at |= {f"{name}_in": (norms[name], "in"), name: (norms[name], "out")}
    experts = [f"{path}.{n}" for n in inside if n.endswith(".experts") and _routed(block, n)]
    if experts:
        at |= {"router": (experts[0], "in"), "experts_in": (experts[0], "in")}
        at["experts"] = (experts[0], "out")
    gate = _gate(block, path, experts[0], row) if experts else None
    if gate is not None:
        at["gate"] = (gate, "out")
    module = experts[0] if experts else None
    return Layer(path, f"{path}.{attention}", mlp, o_path, splits, norms, at, module, gate)


def _kind(model: "nn.Module", layer: Layer) -> tuple[Any, ...]:
    """What must be equal in all layers, so that a head is the same thing in each of them."""
    attention: Any = model.get_submodule(layer.attention)
    matrix: Any = model.get_submodule(layer.o)
    parts = {n: replace(s, module=s.module[len(layer.path) :]) for n, s in layer.splits.items()}
    return parts, matrix.weight.shape, getattr(attention, "num_heads", None)


def _gate(block: "nn.Module", path: str, experts: str, row: Family) -> str | None:
    """The module beside the experts that has one row for each of them."""
    mixture = experts.rpartition(".")[0]
    beside = block.get_submodule(mixture.removeprefix(f"{path}."))
    found = [n for n in row.router if getattr(getattr(beside, n, None), "weight", None) is not None]
    return f"{mixture}.{found[0]}" if found else None


def _routed(block: "nn.Module", name: str) -> bool:
    """True if the module is called with (hidden, chosen experts, their weights)."""
    import inspect

    forward = type(block.get_submodule(name)).forward
    return len(inspect.signature(forward).parameters) >= 4


def _splits(
    path: str, attention: "nn.Module", config: Any, heads: int, kv: int, row: Family
) -> dict[str, Split]:
    if is_latent(config):
        nope = config.qk_nope_head_dim
        q = "q_b_proj" if hasattr(attention, "q_b_proj") else "q_proj"
        return {
            "q": Split(f"{path}.{q}", heads),
            "k": Split(f"{path}.kv_b_proj", heads, end=nope),
            "v": Split(f"{path}.kv_b_proj", heads, begin=nope),
        }
    if all(hasattr(attention, name) for name in row.qkv):
        alone = zip("qkv", row.qkv, (heads, kv, kv), strict=True)
        return {name: Split(f"{path}.{module}", n) for name, module, n in alone}
    fused = [name for name in row.fused if hasattr(attention, name)]
    if not fused or row.order == BY_GROUP:
        return {}
    module = f"{path}.{fused[0]}"
    if row.order_in(fused[0]) == BY_HEAD:
        return {name: Split(module, heads, of=3, index=i) for i, name in enumerate("qkv")}
    d = getattr(config, "head_dim", None) or config.hidden_size // heads
    ends = [0, heads * d, (heads + kv) * d, (heads + 2 * kv) * d]
    units = (heads, kv, kv)
    return {name: Split(module, units[i], ends[i], ends[i + 1]) for i, name in enumerate("qkv")}


def owned(model: "nn.Module", modules: Modules) -> "Owners":
    """See `protocol.Model.owners`."""

    def of(paths: Iterable[str]) -> "list[nn.Parameter]":
        return [p for path in paths for p in model.get_submodule(path).parameters()]

    def heads(found: Layer) -> "list[nn.Parameter]":
        named = {split.module for split in found.splits.values()}
        named |= {path for name, path in found.norms.items() if name in ("q_norm", "k_norm")}
        return [*of(sorted(named)), model.get_submodule(found.o).get_parameter("weight")]

    blocks = ((of([found.path]), of(found.mlp), heads(found)) for found in modules.layers)
    return owners(model.parameters(), blocks)


def _unknown(model: "nn.Module", what: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__}: cannot find {what}: this architecture is not supported; "
        "mechforget doctor lists those that are"
    )
