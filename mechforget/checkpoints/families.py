"""What families of models call their parts, and what they do differently: one row a family.

A family without a row is read as `STANDARD`. Nothing here is believed of a model that runs: its
backend has to prove itself, and refuses what it can't prove or leaves it out of the model's sites.
Stored tensors come without a proof, so they are split only where names and shapes leave no doubt.
This file is in checkpoints/ because both the layout of stored tensors and models/ read it.

What needs no row, because a model's structure or config shows it:
- Norms after a sublayer (Gemma 2 and 3, OLMo 2 and 3, GLM-4): their output enters the residual
  stream, so `attn_out` and `mlp_out` are taken after them, and `head_out` before.
- Attention and MLP in parallel (GPT-NeoX, Phi, Cohere): there is no `resid_mid`.
- Scaled residuals (Granite): the proof measures the factor, `Spec.residual_scale`.
- DeepSeek's latent attention: q, k and v are the per-head parts of q_b_proj and kv_b_proj; k leaves
  out the rotary key, which all heads share.
- Mixtures of experts: the experts' module is called with the tokens' chosen experts.
- OPT keeps its MLP's two matrices in the block itself.
"""

from dataclasses import dataclass
from typing import Any

IN_TURN, BY_HEAD, BY_GROUP = "in turn", "head by head", "group by group"


@dataclass(frozen=True)
class Family:
    """Names of modules, each a choice of which a model has one, and what names can't say."""

    qkv: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    fused: tuple[str, ...] = ("c_attn", "qkv_proj", "Wqkv", "query_key_value")  # q, k, v in one
    output: tuple[str, ...] = ("o_proj", "c_proj", "dense", "out_proj", "wo")  # attention's last
    mlp: tuple[str, ...] = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc1", "fc2")
    W_gate: tuple[str, ...] = ("gate_proj", "gate", "w1")
    W_in: tuple[str, ...] = ("up_proj", "in", "c_fc", "fc1", "dense_h_to_4h", "w3")
    W_out: tuple[str, ...] = ("down_proj", "out", "c_proj", "fc2", "dense_4h_to_h", "w2")
    gate_and_in: str = "gate_up_proj"  # one matrix: W_gate's rows, then W_in's
    router: tuple[str, ...] = ("gate", "router")  # beside a mixture's experts
    n_experts: tuple[str, ...] = ("num_local_experts", "num_experts", "n_routed_experts")
    final: tuple[str, ...] = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
    # (after attention, after the MLP). Llama's `post_attention_layernorm` is another: it comes
    # before the MLP, so a pair counts only if the block has the second.
    post_norms: tuple[tuple[str, str], ...] = (
        ("post_attention_layernorm", "post_feedforward_layernorm"),
        ("post_self_attn_layernorm", "post_mlp_layernorm"),
    )
    parallel: tuple[str, ...] = ("use_parallel_residual", "parallel_attn")  # flags of the config
    # Attention biases among a block's arguments that don't have one entry a row.
    bias_by_head: tuple[str, ...] = ("position_bias",)  # MPT's: the same for all rows
    bias_by_row_and_head: tuple[str, ...] = ("alibi",)  # BLOOM's: rows times heads on one axis
    order: str | None = None  # of q, k, v in a fused matrix: one of the three above
    conv1d: bool = False  # linear layers are transformers' Conv1D: weights are [in, out]
    adds: str | None = None  # in an MLP that adds the residual itself: what computes the rest
    # Whether masks and positions that the model is called with say all that it knows of the order
    # of tokens, so that rows can be packed. ALiBi and GPT-Neo's windows go by the place in a row.
    packs: bool = True

    def order_in(self, fused: str) -> str:
        """The order of q, k, v in this module; without a row, what its name makes likely."""
        return self.order or (BY_HEAD if fused == "query_key_value" else IN_TURN)


STANDARD = Family()
ROWS = {  # transformers' model_type -> what differs
    "gpt2": Family(order=IN_TURN, conv1d=True),
    "openai-gpt": Family(order=IN_TURN, conv1d=True),
    "phi3": Family(order=IN_TURN),
    "dbrx": Family(order=IN_TURN),
    "mpt": Family(order=IN_TURN, adds="down_proj", packs=False),
    "gpt_neox": Family(order=BY_HEAD),
    "gpt_neox_japanese": Family(order=BY_HEAD),
    "bloom": Family(order=BY_HEAD, adds="dense_4h_to_h", packs=False),
    "gpt_neo": Family(packs=False),
    "falcon": Family(order=BY_GROUP),  # which isn't taken apart
}
# The families that the tests open, as `mechforget doctor` lists them; a test holds them together.
TESTED = (
    *("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2"),
    *("phi", "phi3", "mixtral", "qwen3_moe", "olmoe", "llama4_text", "gpt_oss", "deepseek_v3"),
    *("bloom", "mpt", "gptj", "opt", "stablelm", "starcoder2", "gemma", "granite", "olmo3"),
    *("cohere2", "glm4"),
)


def family(model_type: str | None) -> Family:
    return ROWS.get(model_type or "", STANDARD)


def is_latent(config: Any) -> bool:
    """Whether a config (or its JSON) describes latent attention, as DeepSeek's."""
    fields = config if isinstance(config, dict) else vars(config)
    return all(fields.get(name) is not None for name in ("kv_lora_rank", "qk_nope_head_dim"))


def keeps_in_out(module: Any) -> bool:
    """Whether a linear module's weight is [in, out], as that of transformers' Conv1D is."""
    return type(module).__name__ == "Conv1D"
