"""The least arithmetic that a question can be answered with.

Counted are the matrix products alone. Every distinct token (a beginning that several prompts share
is one) goes through each layer once in a variant, and only from the patched site on. A token
attends to itself and to those before it, and to no padding. Only positions that are read are
unembedded.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.prompts import Tree

FROM = {  # what is left to compute of a layer, from a patched site on
    "resid_pre": ("projections", "scores", "values", "output", "mlp"),
    "q": ("scores", "values", "output", "mlp"),
    "k": ("scores", "values", "output", "mlp"),
    "v": ("values", "output", "mlp"),
    "z": ("output", "mlp"),
}


@dataclass(frozen=True)
class Shape:
    """A dense transformer's sizes."""

    layers: int
    d_model: int
    heads: int
    groups: int
    d_head: int
    d_mlp: int
    mlp_matrices: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> "Shape":
        gpt2 = config.model_type == "gpt2"
        heads = config.num_attention_heads
        d_mlp = (config.n_inner or 4 * config.n_embd) if gpt2 else config.intermediate_size
        return cls(
            layers=config.num_hidden_layers,
            d_model=config.hidden_size,
            heads=heads,
            groups=heads if gpt2 else config.num_key_value_heads,
            d_head=getattr(config, "head_dim", None) or config.hidden_size // heads,
            d_mlp=d_mlp,
            mlp_matrices=2 if gpt2 else 3,
            vocabulary=config.vocab_size,
        )

    def matrices(self) -> list[tuple[int, int]]:
        """(in, out) of each of a layer's weight matrices."""
        d, wide = self.d_model, self.heads * self.d_head
        narrow = self.groups * self.d_head
        mlp = [(d, self.d_mlp)] * (self.mlp_matrices - 1) + [(self.d_mlp, d)]
        return [(d, wide), (d, narrow), (d, narrow), (wide, d), *mlp]

    def units(self, site: str) -> int:
        return self.groups if site in "kv" else self.heads

    def weights(self) -> int:
        """Values in the matrices, the unembedding too."""
        return self.layers * sum(a * b for a, b in self.matrices()) + self.d_model * self.vocabulary

    def layer(self, depth: np.ndarray, site: str = "resid_pre") -> float:
        """FLOPs of one layer, from `site` on, for tokens that have so many others before them."""
        sizes = [2 * a * b for a, b in self.matrices()]
        seen = float((depth + 1).sum())
        cost = {
            "projections": len(depth) * sum(sizes[:3]),
            "scores": 2 * seen * self.heads * self.d_head,
            "values": 2 * seen * self.heads * self.d_head,
            "output": len(depth) * sizes[3],
            "mlp": len(depth) * sum(sizes[4:]),
        }
        return sum(cost[part] for part in FROM[site])

    def unembed(self, reads: int) -> float:
        return 2.0 * reads * self.d_model * self.vocabulary


def forward(shape: Shape, tree: Tree) -> float:
    """One forward pass over all prompts."""
    return shape.layers * shape.layer(tree.depth) + shape.unembed(len(tree.read))


def after(shape: Shape, tree: Tree, site: str, layer: int) -> float:
    """One variant: what follows from a patched site of this layer at all tokens."""
    later = (shape.layers - 1 - layer) * shape.layer(tree.depth)
    return shape.layer(tree.depth, site) + later + shape.unembed(len(tree.read))


def sweep(shape: Shape, tree: Tree, site: str) -> float:
    """Both directions: a pass of either checkpoint, and each head or group of each layer."""
    variants = sum(after(shape, tree, site, layer) for layer in range(shape.layers))
    return 2 * (forward(shape, tree) + shape.units(site) * variants)


def positions(shape: Shape, tree: Tree) -> float:
    """Both directions of resid_pre, a position and a layer at a time: tokens before the patched
    position stay as they are."""
    total = forward(shape, tree)
    for position in range(int(tree.depth.max()) + 1):
        reached = Tree(*(depth[depth >= position] for depth in (tree.depth, tree.read)))
        total += sum(after(shape, reached, "resid_pre", layer) for layer in range(shape.layers))
    return 2 * total


def attribution(shape: Shape, tree: Tree, by_prompt: list[Tree], metrics: int = 2) -> float:
    """Both checkpoints: a pass over all prompts, and for each metric a pass back for each prompt by
    itself (tokens that prompts share have a gradient for each). Back from a product with weights is
    one product, and from a product of two activations two."""
    back = 0.0
    for one in by_prompt:
        attends = shape.layer(one.depth, "q") - shape.layer(one.depth, "z")
        through = shape.layer(one.depth) + attends
        back += (shape.layers - 1) * through + shape.layer(one.depth, "z")  # to the first layer's z
        back += shape.unembed(len(one.read))
    return 2 * (forward(shape, tree) + metrics * back)


def screen(shape: Shape, tree: Tree, estimate: float, kept: list[tuple[int, int]]) -> float:
    """The estimate of all heads, and the kept heads exactly, in both directions."""
    exact = forward(shape, tree) + sum(after(shape, tree, "z", layer) for layer, _ in kept)
    return estimate + 2 * exact
