"""Where families keep their sites. A family that is not listed is read like `STANDARD`; what the
backend then cannot prove, it refuses or leaves out of the model's sites.

Notes on places where the obvious hook is not what enters the residual stream:
- Gemma 2, Gemma 3, OLMo 2, Olmo 3 and GLM-4 normalise a sublayer's output before adding it.
  `attn_out` and `mlp_out` are taken after that norm; `head_out` is the head's share before it.
- GPT-NeoX, Phi, Falcon and Cohere run attention and MLP in parallel: there is no `resid_mid`.
- Granite-like models scale sublayer outputs before adding them, by `Spec.residual_scale`.
- DeepSeek's latent attention: q, k, v are the per-head parts of q_b_proj and kv_b_proj; k leaves
  out the rotary key, which all heads share.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Projection:
    """Which module computes a head's vector: its output is [row, position, units · width].

    part: (start, stop) within a unit's width; config names are resolved by `part_of`.
    """

    module: str
    part: tuple[str | None, str | None] = (None, None)

    def part_of(self, config: object) -> slice:
        start, stop = (None if name is None else int(getattr(config, name)) for name in self.part)
        return slice(start, stop)


@dataclass(frozen=True)
class Architecture:
    """TransformerLens component names, within a block."""

    q: Projection = Projection("attn.q")
    k: Projection = Projection("attn.k")
    v: Projection = Projection("attn.v")
    o: str = "attn.o"
    per_head_kv: bool = (
        False  # keys and values are per query head whatever num_key_value_heads says
    )


STANDARD = Architecture()
LATENT = Architecture(
    q=Projection("attn.q_b_proj"),
    k=Projection("attn.kv_b_proj", (None, "qk_nope_head_dim")),
    v=Projection("attn.kv_b_proj", ("qk_nope_head_dim", None)),
    per_head_kv=True,
)
TABLE: dict[str, Architecture] = {
    "gpt2": STANDARD,
    "gpt_neox": STANDARD,
    "llama": STANDARD,
    "mistral": STANDARD,
    "qwen2": STANDARD,
    "qwen3": STANDARD,
    "gemma2": STANDARD,
    "gemma3_text": STANDARD,
    "olmo2": STANDARD,
    "phi": STANDARD,
    "phi3": STANDARD,
    "mixtral": STANDARD,
    "qwen3_moe": STANDARD,
    "olmoe": STANDARD,
    "llama4_text": STANDARD,
    "gpt_oss": STANDARD,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
}


def architecture(config: object) -> Architecture:
    """The row of a Hugging Face config's family; `STANDARD` where the table has none."""
    row = TABLE.get(getattr(config, "model_type", ""), STANDARD)
    if row is LATENT and getattr(config, "q_lora_rank", None) is None:
        row = replace(row, q=Projection("attn.q_proj"))
    return row
