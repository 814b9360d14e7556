"""Tiny random models of the real classes, and a tokenizer small enough to read: what tests run on.

Every model has 3 layers, 32 wide, 4 query heads, float32, eager attention, and weights large
enough that heads differ; its vocabulary is the tokenizer's. Nothing is downloaded.
"""

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

# By how many nats the log-probability of an answer may differ between two forward passes of
# different shapes (other chunks, other rows beside it). A matrix product of another size may sum in
# another order, so its last bits are the processor's. An answer's log-probability is a sum of up to
# eight terms of up to 30 nats, each rounded to 2^-24 of itself some 30 times on its way through three
# layers: 8 · 30 · 6e-8 · √30 = 8e-5. Effects that a mistake makes or loses are above 1e-2.
OTHER_SHAPE = 1e-4

VOCAB = 400
PAD, BOS, EOS = "<pad>", "<s>", "</s>"  # ids 0, 1, 2

SENTENCES = (
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is Madrid.",
    "The capital of Germany is Berlin. The capital of Japan is Tokyo. The capital of Peru is Lima.",
    "The currency of France is the euro. The currency of Japan is the yen.",
    "People from Italy are called Italian. The past tense of go is went. One dog, two dogs.",
    "The official language of Egypt is Arabic. Canada, Chile, China, India, Kenya, Norway, Cuba.",
)

_BASE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
_GEMMA = dict(_BASE, head_dim=8, query_pre_attn_scalar=8)

FAMILIES: dict[str, dict] = {  # transformers' model_type -> its config
    "gpt2": dict(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt_neox": {k: v for k, v in _BASE.items() if k != "num_key_value_heads"},
    "llama": _BASE,
    "mistral": _BASE,
    "qwen2": _BASE,
    "qwen3": dict(_BASE, head_dim=8),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo2": _BASE,
    "phi": _BASE,
    "phi3": _BASE,
    "mixtral": dict(_BASE, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": dict(
        _BASE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "olmoe": dict(_BASE, num_experts=4, num_experts_per_tok=2),
    "llama4_text": dict(
        _BASE,
        head_dim=8,
        num_local_experts=4,
        intermediate_size_mlp=48,
        interleave_moe_layer_step=2,
    ),
    "gpt_oss": dict(_BASE, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": dict(
        _BASE,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
}


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE (any text, lossless), trained on SENTENCES. `bos`: it puts BOS in front, as
    Llama's and Gemma's do; without, as SmolLM2's and Qwen's."""
    tokenizer = Tokenizer.from_str(_trained())
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS
    )


def tiny_model(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random model in eval mode: same family and seed, same weights."""
    config = AutoConfig.for_model(family, **FAMILIES[family])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # norms and biases off 1 and 0, so that a forgotten one shows
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
            else:  # the default 0.02 leaves attention uniform and every head alike
                weight.mul_(5)
    return model


def save_tiny(folder: str | Path, family: str = "llama", seed: int = 0) -> Path:
    """Saves model (safetensors) and tokenizer as a checkpoint folder; returns the folder."""
    tiny_model(family, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Path(folder)


def save_adapter(
    folder: str | Path, base: Path, seed: int = 0, targets: str | list[str] = "all-linear"
) -> Path:
    """Saves a LoRA of rank 4 on linear layers in a tiny checkpoint's blocks; returns the folder.
    It was trained with dropout, and isn't the identity that peft starts with."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.name_or_path = model.name_or_path = str(base.resolve())
    settings = LoraConfig(r=4, target_modules=targets, lora_dropout=0.3, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    adapted.save_pretrained(folder)
    return Path(folder)
