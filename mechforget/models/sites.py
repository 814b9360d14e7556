"""The names of the places where a model can be read and rewritten.

A site is a name of the field, never a hook string; backends translate.

| site | shape of one layer's activation | meaning |
|---|---|---|
| resid_pre, resid_mid, resid_post | row, position, d_model | the stream before, between, after |
| attn_out, mlp_out | row, position, d_model | what the sublayer adds to the residual stream |
| q | row, position, head, d_qk | query projection, before any norm or rotation |
| k, v | row, position, group, d | key and value projections, one per group of query heads |
| pattern | row, head, query, key | attention probabilities |
| z | row, position, head, d_v | attention-weighted values, before W_O |
| head_out | row, position, head, d_model | z · W_O of one head, with its checkpoint's own W_O |
| router | row, position, slot, 2 | of a mixture of experts: the chosen experts and their weights |
| expert_out | row, position, d_model | what one expert adds, weighted; 0 where it isn't chosen |
| W_Q, W_K, W_V, W_O | | a head's (W_K, W_V: its group's) weights |
| W_expert | | one expert's weights |
"""

from dataclasses import dataclass
from typing import Any

from mechforget.errors import SweepError

RESIDUAL = ("resid_pre", "resid_mid", "resid_post")
LAYER = (*RESIDUAL, "attn_out", "mlp_out", "router")
EXPERT = ("router", "expert_out")  # of layers that are mixtures of experts
BY_EXPERT = ("expert_out", "W_expert")
QUERY_HEAD = ("z", "head_out", "q", "pattern")
GROUP = ("k", "v")
MATRICES = ("W_Q", "W_K", "W_V", "W_O")
PARAMETER = dict(zip("qkvo", MATRICES, strict=True))  # by the letter that names it in L2H1.vo
WEIGHTS = (*MATRICES, "W_expert")
ACTIVATIONS = (*LAYER, *QUERY_HEAD, *GROUP, "expert_out")
PROJECTION = {"W_Q": "q", "W_K": "k", "W_V": "v", "q": "W_Q", "k": "W_K", "v": "W_V"}


@dataclass(frozen=True, order=True)
class Edit:
    """One rewrite: this site of this layer takes the donor's value.

    head: query head, or group for k, v, W_K, W_V, or expert; None for sites without them.
    position: one token position; None for all.
    """

    layer: int
    site: str
    head: int | None = None
    position: int | None = None

    @property
    def unit(self) -> int:
        """The head, group or expert of a site that has them."""
        assert self.head is not None, f"{self.site} has units"
        return self.head


def packing(nodes: int, d_model: int) -> dict[str, Any]:
    """nodes: of the largest packed row. quadratic: the number of tokens in a row at which
    attention's products and softmax, which grow with its square, cost as much as everything else;
    on two cores 1,150 in rows of 256 and 570 in rows of 1,024, of a model 576 wide."""
    return {"nodes": nodes, "quadratic": 1.5 * d_model}


@dataclass(frozen=True)
class Spec:
    """The shape of a model, as its backend measured it."""

    family: str
    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_vocab: int
    sites: frozenset[str]  # activations and matrices that the backend proved live
    residual_scale: float | None  # resid_post - resid_pre = scale · (attn_out + mlp_out)
    experts: int = 0  # in one layer
    moe: tuple[int, ...] = ()  # the layers that are mixtures of experts
    resident: bool = True  # its weights are in memory, and can be lent to another model
    nodes: int = 0  # the largest packed row that it runs, see `tasks.tree`; 0: none

    @property
    def scale(self) -> float:
        """`residual_scale`, where asking implies that there is one."""
        assert self.residual_scale is not None, "only of models whose residual stream is a sum"
        return self.residual_scale

    @property
    def packing(self) -> dict[str, Any]:
        """How this model's rows are packed, as `tasks.encoded.grouped` is told."""
        return packing(self.nodes, self.d_model)

    def group(self, head: int) -> int:
        """The key/value group that a query head reads."""
        return head * self.kv_heads // self.heads

    def units(self, site: str) -> int:
        """How many heads, groups or experts a site has in one layer; 0 for sites without them."""
        if site in LAYER:
            return 0
        if site in BY_EXPERT:
            return self.experts
        return self.kv_heads if site in (*GROUP, "W_K", "W_V") else self.heads

    def at(self, site: str) -> "tuple[int, ...] | range":
        """The layers that have this site."""
        return self.moe if site in ("router", *BY_EXPERT) else range(self.layers)

    def require(self, site: str) -> None:
        """Raises SweepError: the site is unknown, or this model has no such place."""
        if site not in (*ACTIVATIONS, *WEIGHTS):
            raise SweepError(f"site {site!r} is unknown; sites: {', '.join(ACTIVATIONS)}")
        if site not in self.sites:
            have = ", ".join(s for s in ACTIVATIONS if s in self.sites)
            raise SweepError(f"a {self.family} model has no site {site!r}; it has: {have}")
