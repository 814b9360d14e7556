"""Why two checkpoints are not a pair, in words. Reads headers, configs and tokenizers only.

Their weights may differ, of course. All else that determines a model's function may not:
architecture, tensor names and shapes, vocabulary, tokenizer, and the fields of the config.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mechforget.checkpoints import folder

if TYPE_CHECKING:
    from mechforget.checkpoints.checkpoint import Checkpoint

IGNORED = {  # fields that the logits of given ids don't depend on
    *("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype"),
    *("architectures", "auto_map", "use_cache", "return_dict", "output_attentions"),
    *("output_hidden_states", "output_router_logits", "_attn_implementation"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"),
    *("id2label", "label2id", "num_labels", "problem_type", "task_specific_params"),
    *("initializer_range", "initializer_factor", "gradient_checkpointing", "pretraining_tp"),
    *("router_aux_loss_coef", "router_z_loss_coef", "router_jitter_noise", "aux_loss_alpha"),
    "vocab_size",  # reported separately
}
SECTIONS = ("model", "added_tokens", "normalizer", "pre_tokenizer")  # of tokenizer.json
PROBE = (
    "The capital of France isn't 1,234.5  km²;\n\tÉcole e\u0301tude 日本語 🙂 don't_STOP <s></s> "
    "x=[1, 22, 333]\r\n\n  Ends here"
)


def differences(pre: "Checkpoint", post: "Checkpoint") -> list[str]:
    """Says how two checkpoints differ, one clause for each kind of difference; an empty list if
    they can be compared.

    Raises: CheckpointError: one of the two checkpoints is itself faulty.
    """
    return [
        *_architecture(pre, post),
        *(_tensors(pre, post) if pre.has_weights and post.has_weights else ()),
        *_vocabulary(pre, post),
        *_config(pre, post),
        *_tokenizer(pre, post),
    ]


def _architecture(pre: "Checkpoint", post: "Checkpoint") -> Iterator[str]:
    ours, theirs = (folder.model_class(c.config, c.folder).__name__ for c in (pre, post))
    if ours != theirs:
        yield f"architecture {ours} / {theirs}"


def _tensors(pre: "Checkpoint", post: "Checkpoint") -> Iterator[str]:
    ours, theirs = _shapes(pre), _shapes(post)
    gone, new = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    moved = [
        f"{name} {list(shape)} / {list(theirs[name])}"
        for name, shape in ours.items()
        if name in theirs and theirs[name] != shape
    ]
    if gone:
        yield f"tensors only in the first: {few(gone)}"
    if new:
        yield f"tensors only in the second: {few(new)}"
    if moved:
        yield f"shapes: {few(moved)}"


def _shapes(checkpoint: "Checkpoint") -> dict[str, tuple[int, ...]]:
    """Shapes by canonical name: without the base model's prefix (with or without it, the same model
    is loaded), tied copies, and the buffers of older versions that loading skips."""
    config = checkpoint.config
    model = folder.model_class(config, checkpoint.folder)
    skip = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    skip.append(re.compile(r"rotary_emb\.inv_freq$"))
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if not config.get_text_config().tie_word_embeddings:
        tied = set()
    return {
        name.removeprefix(f"{model.base_model_prefix}."): info.shape
        for name, info in checkpoint.tensors().items()
        if name not in tied and not any(pattern.search(name) for pattern in skip)
    }


def _vocabulary(pre: "Checkpoint", post: "Checkpoint") -> Iterator[str]:
    ours, theirs = (c.config.get_text_config().vocab_size for c in (pre, post))
    if ours != theirs:
        yield f"vocabulary {ours} / {theirs}"


def _config(pre: "Checkpoint", post: "Checkpoint") -> Iterator[str]:
    if pre.config.model_type != post.config.model_type:
        return  # the fields of two architectures can't be compared
    ours, theirs = (dict(_flat(c.config.to_dict())) for c in (pre, post))
    moved = [
        f"{key} {ours.get(key)} / {theirs.get(key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if not _same(ours.get(key), theirs.get(key))
    ]
    if moved:
        yield f"config: {few(moved)}"


def _flat(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        if key in IGNORED or "dropout" in key or key.endswith("pdrop"):
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6)  # GGUF stores 1e-5 as a float32
    return a == b


def _tokenizer(pre: "Checkpoint", post: "Checkpoint") -> Iterator[str]:
    texts = [
        c.tokenizer().backend_tokenizer.to_str()  # type: ignore[attr-defined]  # fast ones'
        for c in (pre, post)
    ]
    parts = []
    if texts[0] != texts[1]:  # to read them takes longer than to compare them
        ours, theirs = map(json.loads, texts)
        for section in SECTIONS:
            if ours[section] != theirs[section]:
                parts.append(section if section != "model" else _token_model(ours, theirs))
    encoded = [c.tokenizer()(PROBE)["input_ids"] for c in (pre, post)]
    if encoded[0] != encoded[1]:
        parts.append("a probe text gets other ids")
    if parts:
        yield f"tokenizer: {few(parts, 5)}"


def _token_model(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    one, two = ours["model"], theirs["model"]
    keys = [key for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)]
    if "vocab" in keys and isinstance(one.get("vocab"), dict) and isinstance(two["vocab"], dict):
        tokens = sorted({token for token, _ in one["vocab"].items() ^ two["vocab"].items()})
        keys[keys.index("vocab")] = f"vocab ({few([repr(token) for token in tokens])})"
    return ", ".join(keys)


def few(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
