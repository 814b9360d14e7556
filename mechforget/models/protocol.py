"""What the sweep engine and the measures ask of a model. Each backend implements it in one file.

A backend builds an `Unproven` around a checkpoint; `proof.prove` makes a `Model` of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mechforget.models.sites import Spec
from mechforget.shapes import Array, Float, Int, Tensor

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from mechforget.models.parts import Owners

# A point is (layer, name). The names are the sites that a module computes; the module inputs that
# rewriting weights needs (q_in, k_in, v_in, q_norm_in, k_norm_in, q_norm, k_norm, attn_raw,
# unembed); experts_in, what a layer's experts are given, and experts, the sum of their outputs; and
# gate, which is only read: the logits [row, position, expert] by which experts are chosen.
Point = tuple[int, str]
Rewrite = Callable[["torch.Tensor"], "torch.Tensor | None"]


@dataclass(frozen=True)
class Proof:
    """One thing that a backend showed about itself on this checkpoint."""

    name: str
    passed: bool
    detail: str


class Unproven(Protocol):
    """A checkpoint that can be run with its activations read and rewritten, as its backend read it
    off the modules: nothing of it is believed before `proof.prove` has tried it."""

    module: "torch.nn.Module"  # holds the weights
    family: str  # transformers' model_type
    layers: int
    heads: int  # query heads in one layer
    kv_heads: int  # groups of query heads that share a key and a value
    experts: int  # in one mixture; 0 if the config has none
    parallel: bool  # attention and MLP read the same residual stream
    nodes: int  # the largest packed row that it may be able to run; 0: none
    norms_heads_first: bool  # q_norm and k_norm see [row, head, position, d]; set by `prove`

    @property
    def device(self) -> "torch.device":
        """Where ids are expected."""
        ...

    @property
    def dtype(self) -> str:
        """What its weights are held in: float32, bfloat16, ..."""
        ...

    def run(
        self,
        ids: Int[Tensor, "row position"],
        rewrites: Mapping[Point, Rewrite],
        parent: Int[Array, "row position"] | None = None,
    ) -> Float[Tensor, "rows positions vocabulary"]:
        """Logits for ids that are padded on the right.

        parent: of packed rows, the place of each token's predecessor in its row, see
        `tasks.tree.Tree`; masks and positions are made from it. None: a row is one sequence.

        Each rewrite is called once, in execution order, with its point's activation; what it
        returns is used instead (None: unchanged). It may change its argument in place. At
        `resid_pre` it may return more rows than it got: the model goes on with all of them, and
        row r is masked as row r modulo the number of rows of ids. At
        `unembed` (layer = number of layers: the normed residual) it may return any rows.
        """
        ...

    def weight(
        self, layer: int, matrix: str, head: int
    ) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, " d_out"] | None]:
        """A head's (group's) slice of W_Q, W_K, W_V or W_O, and its slice of the bias. W_O's bias
        belongs to no head: None."""
        ...

    def serves(self, layer: int, name: str) -> bool:
        """Whether this point exists."""
        ...

    def has(self, layer: int, name: str) -> bool:
        """Whether the layer has this norm: q_norm, k_norm, or attn_post, mlp_post (after the
        sublayer)."""
        ...

    def norm(
        self, layer: int, name: str, x: Float[Tensor, "*place d"]
    ) -> Float[Tensor, "*place d"]:
        """Apply one of those norms, or `final`, to x (q_norm, k_norm: laid out as their point)."""
        ...

    def norm_weight(self, layer: int, name: str) -> Float[Tensor, " d"] | None:
        """Its weight; None if it has none."""
        ...

    def per_head(self, name: str, x: Float[Tensor, "..."]) -> Float[Tensor, "row position unit d"]:
        """The value at point q_norm or k_norm by unit; it shares memory with x."""
        ...

    def expert_out(
        self,
        layer: int,
        expert: int,
        x: Float[Tensor, "row position d_model"],
        router: Float[Tensor, "row position slot 2"],
    ) -> Float[Tensor, "row position d_model"]:
        """What one expert adds: its output on x (as at experts_in),
        weighted, where `router` chose it; 0 where it didn't."""
        ...

    def gate(self, layer: int) -> Float[Tensor, "expert d_model"]:
        """The rows of the gate of a mixture of experts."""
        ...

    def unembedding(
        self,
    ) -> tuple[Float[Tensor, "vocabulary d_model"], Float[Tensor, " vocabulary"] | None]:
        """W_U and its bias; raw logits are before any scale or soft cap."""
        ...

    def owners(self) -> "Owners":
        """(part, layer) of each parameter, in an order that two checkpoints of one architecture
        share. part: attention (what belongs to heads), mlp, or rest (norms, embeddings,
        unembedding, output biases, attention sinks, shared latents)."""
        ...

    def parameters(self, part: str, layer: int | None = None) -> "list[torch.nn.Parameter]":
        """The parameters of one part, in all layers or in one."""
        ...


class Model(Unproven, Protocol):
    """A model that has proved itself."""

    spec: Spec
    proofs: tuple[Proof, ...]
    # A file in which a served model keeps the ids of its unanswered questions, so that a client
    # that died finds them again. Models that run here have none to keep.
    journal: "Path | None"


class Served(Protocol):
    """A model on a server, as the client sees it: it is asked instead of called."""

    spec: Spec
    proofs: tuple[Proof, ...]
    url: str
    own: bool  # the server is the user's own, not hosted NDIF
    deployment: tuple[str, str]  # the server's address, and the name of the model there
    adapter: str | None  # that the deployment wears for this model
    half_donors: bool  # what is sent between two models is sent as float16

    def ask(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """The answer of a function (`module:name`) that runs beside the model.

        Raises: ModelError: the server refused it, failed, or cannot be reached.
        """
        ...
