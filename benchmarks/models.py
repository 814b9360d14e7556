"""Pairs of checkpoints: a real model before and after fine-tuning, random ones of real classes."""

from pathlib import Path
from typing import Any

import torch

from mechforget import tasks
from mechforget.checkpoints import smollm2
from mechforget.training import Settings, finetune

SMOL, GPT2 = "SmolLM2-135M", "GPT-2-sized"
DEMO = Path("runs/demo/1-language"), Path("runs/demo/2-currency")
SMALL_STEP = 0.02  # of a weight's spread: how far random models' second checkpoint lies


def pair(name: str, work: Path, *, quick: bool, layers: int | None = None) -> tuple[Path, Path]:
    """The folders of pre and post, made in `work` where they aren't there."""
    if name == SMOL and not quick:
        return DEMO if all((one / "config.json").exists() for one in DEMO) else _trained(work)
    made = work / "models" / f"{name}{'' if layers is None else f'-{layers}'}"
    folders = made / "pre", made / "post"
    if not (folders[1] / "config.json").exists():
        config = _config(name, quick, layers)
        words = _words() if quick else tokenizer(smollm2.fetch())
        for step, folder in enumerate(folders):
            _random(config, SMALL_STEP * step, 5.0 if quick else 2.0).save_pretrained(folder)
            words.save_pretrained(folder)
    return folders


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _trained(work: Path) -> tuple[Path, Path]:
    """A few steps on currencies: enough that effects are no rounding errors."""
    base = smollm2.fetch()
    settings = Settings(steps=5, learning_rate=1e-4)
    return base, finetune(base, tasks.load("builtin:currency"), work / "models" / SMOL, settings)


def _config(name: str, quick: bool, layers: int | None) -> Any:
    from transformers import GPT2Config, LlamaConfig

    ends: dict[str, Any] = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    if not quick:
        return GPT2Config(n_layer=layers or 12, **ends)  # its defaults are GPT-2's sizes
    if name == GPT2:
        return GPT2Config(
            vocab_size=400, n_embd=32, n_layer=layers or 3, n_head=4, n_positions=128, **ends
        )
    return LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=layers or 3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        **ends,
    )


def _random(config: Any, step: float, spread: float) -> Any:
    """Weights larger than at the start of training, at which all heads would be alike."""
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(spread)
            p.add_(step * torch.randn(p.shape, generator=generator) * p.std())
    return model.float().eval()


def _words() -> Any:
    """A tokenizer with a token for each word of the tasks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from benchmarks.prompts import TASK, WORDS

    rows = tasks.load(TASK).rows
    texts = [*rows["prompt"], *rows["answer"], *WORDS]
    words = dict.fromkeys(word for text in texts for word in text.split())
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
