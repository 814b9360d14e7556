"""Bundles as a study would write them, with numbers from a seeded generator. For tests only."""

import base64
import gzip
import math
from typing import Any

import numpy as np

from tests.views.synthetic_mechanisms import mechanisms

METRICS = ("log_prob", "logit_diff", "correct")
DIRECTIONS = ("restore", "break")
MATRICES = ("all", "q", "k", "v", "o")
COUNTRIES = (
    "France Paris,Peru Lima,Kenya Nairobi,Nepal Kathmandu,Spain Madrid,Japan Tokyo,Chile Santiago,Egypt Cairo,"
    "Italy Rome,Cuba Havana,Ghana Accra,Norway Oslo,Austria Vienna,Greece Athens,Poland Warsaw,Qatar Doha,"
    "Ireland Dublin,Germany Berlin,Portugal Lisbon,Finland Helsinki,Hungary Budapest,Iraq Baghdad,Iran Tehran,Syria Damascus"
).split(",")
EMPTY = {
    "circuit": "Edges were not scored in this run: `mechforget compare PRE POST --task TASK --measures circuit`.",
    "routing": "This model is dense: there is no router.",
}


def bundle(
    layers: int = 30,
    heads: int = 9,
    n: int = 24,
    seed: int = 0,
    forgetting: bool = True,
    stored: list[tuple[int, int]] | None = None,
    prompts: list[dict[str, Any]] | None = None,
    metrics: tuple[str, ...] = METRICS,
    experts: int = 0,
) -> dict[str, Any]:
    """A pair that forgot (or did not), damage in three heads; `stored`: heads with attention."""
    rng = np.random.default_rng(seed)
    size = layers * heads
    lost = 2.81 if forgetting else 0.012
    carriers = rng.choice(size, 6, replace=False)
    signal = np.zeros(size)
    if forgetting:
        signal[carriers] = [0.41, 0.3, 0.22, 0.12, -0.09, 0.07]

    def stats(length: int, truth: np.ndarray, scale: float = 1.0) -> dict[str, list]:
        effect = (
            scale * (truth * rng.uniform(0.8, 1.2, length) + rng.normal(0, 0.006, length)) * lost
        )
        half = np.abs(effect) * 0.15 + 0.02 * scale
        sure = (np.abs(effect) > 0.08 * scale) & (np.abs(effect) > half)
        share = (lambda a: (a / (lost * scale)).tolist()) if forgetting else (lambda a: None)
        p = np.where(sure, rng.uniform(1e-5, 1e-3, length), rng.uniform(0.05, 1, length))
        return {
            "effect": effect.tolist(), "low": (effect - half).tolist(), "high": (effect + 1.1 * half).tolist(),
            "share": share(effect), "share_low": share(effect - half), "share_high": share(effect + 1.1 * half),
            "p": p.tolist(), "q": np.minimum(1, p * 3).tolist(), "significant": sure.tolist(),
        }  # fmt: skip

    def site(truth: np.ndarray, has_heads: bool, metrics=metrics) -> dict[str, Any]:
        scale = {"log_prob": 1.0, "logit_diff": 0.7, "correct": 0.2}
        return {
            "heads": has_heads,
            "metrics": {
                m: {d: stats(len(truth), truth, scale[m]) for d in DIRECTIONS} for m in metrics
            },
        }

    depth = np.arange(layers) / (layers - 1)
    by_layer = signal.reshape(layers, heads).sum(1)
    grafting: dict[str, Any] = {m: site(np.roll(signal, -heads * 3) * w, True, ("log_prob",)) for m, w in zip(MATRICES, (1, 0.1, 0.1, 0.7, 0.6), strict=True)}  # fmt: skip
    grafting["all"] = site(np.roll(signal, -heads * 3), True)
    grafting["mlp"] = site(by_layer * 0.5, False)
    for matrix in MATRICES[1:]:  # single matrices were run for the top heads only
        keep = set(np.argsort(-np.abs(grafting["all"]["metrics"]["log_prob"]["restore"]["effect"]))[:40].tolist())  # fmt: skip
        for numbers in grafting[matrix]["metrics"]["log_prob"].values():
            for key, values in numbers.items():
                numbers[key] = values and [v if i in keep else None for i, v in enumerate(values)]

    prompts = prompts or [_prompt(rng, i, forgetting) for i in range(n)]
    for prompt in prompts:
        prompt.setdefault("top_head", [int(carriers[0]) // heads, int(carriers[0]) % heads])
    order = np.argsort(-np.abs(signal))
    k = [1, 2, 4, 8, 16]
    gained = lost * (1 - np.exp(-np.array(k) * 0.45)) * 0.9
    return {
        "version": 1,
        "meta": {
            "title": "What did fine-tuning on currency do to capital?",
            "pre": "HuggingFaceTB/SmolLM2-135M-Instruct", "post": "runs/demo/after-currency",
            "task": "builtin:capital", "new_task": "builtin:currency", "n_prompts": len(prompts), "n_clusters": len(prompts),
            "created": "2026-09-14T10:22:31+00:00", "seed": 0, "dtype": "float32", "backend": "transformer_lens",
            "command": "mechforget compare HuggingFaceTB/SmolLM2-135M-Instruct runs/demo/after-currency --task builtin:capital --new-task builtin:currency --control-twin runs/demo/twin --out runs/demo/report",
            "versions": {"mechforget": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "transformer-lens": "4.3.0", "numpy": "2.4.6"},
            "digests": {"pre": "9f2c" * 16, "post": "41ab" * 16}, "commit": None, "screen": None,
            "notes": ["230 of 254 rows were left out: the model before fine-tuning does not know them (--only-known)", "one space was put before each answer"],
        },
        "model": {"name": "llama", "layers": layers, "heads": heads, "kv_heads": max(1, heads // 3), "d_model": 64 * heads, "experts": experts},
        "verdict": _verdict(forgetting, size, order, heads),
        "forgetting": _forgetting(len(prompts), forgetting),
        "floor": {
            "source": "99th percentile over heads of |effect| in the control pair (control_twin)",
            "values": [{"metric": m, "site": s, "direction": d, "value": v * f} for m, v in (("log_prob", 0.061), ("logit_diff", 0.043), ("correct", 0.0104)) for s, f in (("head_out", 1.0), ("z", 1.1), ("graft:all", 0.9)) for d in DIRECTIONS],
        },
        "patching": {
            "z": site(signal * 0.9, True), "head_out": site(signal, True), "attn_out": site(by_layer, False),
            "mlp_out": site(rng.normal(0, 0.05, layers), False), "resid_post": site(depth**2, False),
        },
        "estimated": {"head_out": site(signal * 0.8, True, METRICS[:2])},
        "grafting": grafting,
        "sets": [{
            "site": "head_out", "direction": "restore", "metric": "log_prob", "k": k, "forgetting": lost,
            "top": {"effect": gained.tolist(), "low": (gained * 0.88).tolist(), "high": (gained * 1.1).tolist()},
            "random": {"mean": [0.01 * x for x in k], "low": [-0.02 * x for x in k], "high": [0.035 * x for x in k]},
            "heads": [[[int(i) // heads, int(i) % heads] for i in order[:x]] for x in k],
        }],
        "heads": {"columns": _columns(rng, size, signal)},
        "prompts": prompts,
        "attention": _attention(rng, prompts, layers, heads, stored),
        "limits": [
            {"name": "ledger", "detail": "the shares miss 0.001 of 2.81 nats, at most 16 nodes"},
            {"name": "drift", "detail": "24 distinct prompts, 32 are wanted: geometry is mostly the sample's"},
        ],
        "checks": [
            {"name": "Logits equal plain Hugging Face", "pass": True, "detail": "largest difference 3.1e-6"},
            {"name": "Patching nothing changes nothing", "pass": True, "detail": "largest difference 0"},
            {"name": "Residual contributions sum", "pass": True, "detail": "largest difference 1.2e-6"},
            {"name": "The last residual restores all", "pass": True, "detail": "100 % with the final norm and unembedding of before"},
        ],
        **mechanisms(np.random.default_rng(seed + 1), layers, heads, lost, experts),
        "empty": {k: v for k, v in EMPTY.items() if not (experts and k == "routing")},
    }  # fmt: skip


def _prompt(rng: np.random.Generator, i: int, forgetting: bool) -> dict[str, Any]:
    country, capital = COUNTRIES[i % len(COUNTRIES)].split()
    before = -float(rng.gamma(2, 0.5))
    after = before - float(rng.gamma(2, 1.4)) * (1 if forgetting else 0.002)
    return {
        "text": f"The capital of {country} is", "answer": f" {capital}", "wrong": " Lima", "cluster": i,
        "log_prob": [before, after], "logit_diff": [9.3 + before, 9.5 + after * 0.4],
        "correct": [float(before > -1.6), float(after > -1.6)],
    }  # fmt: skip


def _verdict(forgetting: bool, size: int, order: np.ndarray, heads: int) -> dict[str, Any]:
    name = f"L{order[0] // heads}H{order[0] % heads}"
    if not forgetting:
        return {
            "sentence": "No forgetting to explain: log-probability of capital changed by −0.012 nats (−0.05 to 0.02, n = 24), within what chance gives.",
            "lines": [], "warnings": [], "forgetting": False,
            "figures": [{"value": "-0.012", "label": "nats changed", "interval": "-0.05 to 0.02", "control": "seed twin 0.02", "panel": "prompts"}],
        }  # fmt: skip
    return {
        "sentence": f"Fine-tuning on currency cost capital 2.81 nats (2.43 to 3.2, n = 24); it is expressed in few heads, {name} first, which restores 40.1 % of it (34 to 46), and was written in W_V and W_O of layers 0 to 9.",
        "lines": ["The metrics disagree: the logit difference rose by 0.94 (0.2 to 1.7) while the log-probability fell.", f"6 of {size} heads are significant at head_out, restore; grafting finds 5."],
        "warnings": ["The post checkpoint is one training seed: intervals speak of prompts only."],
        "forgetting": True,
        "figures": [
            {"value": "2.81", "label": "nats forgotten", "interval": "2.43 to 3.2", "control": "seed twin 0.02", "panel": "prompts"},
            {"value": "40.1 %", "label": f"restored by {name} alone", "interval": "34 to 46, cross-fitted", "control": "random head 0.4 %", "panel": "head"},
            {"value": f"6 / {size}", "label": "heads significant at FDR 5 %", "interval": "5 to 8", "control": "floor 0.061 nats (seed twin)", "panel": "heads"},
            {"value": "68.3 %", "label": "restored by 4 heads", "interval": "61 to 75", "control": "4 random heads 1.4 % (−3 to 5)", "panel": "sure"},
        ],
    }  # fmt: skip


def _forgetting(n: int, forgetting: bool) -> list[dict[str, Any]]:
    scale = 1.0 if forgetting else 0.004
    rows = (("log_prob", "nats", -1.338, -2.81), ("logit_diff", "nats", 9.312, 0.937), ("correct", "", 0.708, -0.5), ("preferred", "", 0.958, -0.083))  # fmt: skip
    old = [
        {"metric": m, "unit": u, "pre": pre, "post": pre + c * scale, "change": c * scale, "low": c * scale - 0.39 * abs(c), "high": c * scale + 0.36 * abs(c), "p": 0.000244 if forgetting else 0.61, "n": n, "significant": forgetting, "task": "old"}
        for m, u, pre, c in rows
    ]  # fmt: skip
    new = {"metric": "log_prob", "unit": "nats", "pre": -6.1, "post": -0.021, "change": 6.08, "low": 5.7, "high": 6.5, "p": 1e-6, "n": 40, "significant": True, "task": "new"}  # fmt: skip
    return [*old, new]


def _columns(rng: np.random.Generator, size: int, signal: np.ndarray) -> dict[str, Any]:
    entropy = rng.uniform(0.3, 3, size)
    dla = rng.normal(0, 0.2, size) + signal * 4
    columns = {
        "js": ("bit", "attention change (JS)", np.abs(signal) * 0.5 + rng.uniform(0, 0.03, size))
    }
    for key, unit, label, pre, change in (
        ("entropy", "bit", "attention entropy", entropy, rng.normal(0, 0.1, size)),
        ("first", "", "first-token mass", rng.uniform(0, 1, size), rng.normal(0, 0.05, size)),
        ("induction", "", "induction score", rng.beta(0.3, 3, size), rng.normal(0, 0.01, size)),
        ("previous", "", "previous-token score", rng.beta(0.3, 3, size), rng.normal(0, 0.01, size)),
        ("dla", "nats", "direct logit attribution", dla, -signal * 5),
    ):
        columns[f"{key}_pre"] = (unit, f"{label}, before", pre)
        columns[f"{key}_post"] = (unit, f"{label}, after", pre + change)
    columns["dla_change"] = ("nats", "direct logit attribution, change", -signal * 5)
    return {k: {"unit": u, "label": t, "values": v.tolist()} for k, (u, t, v) in columns.items()}


def _attention(rng, prompts, layers, heads, stored) -> dict[str, Any]:
    slots = layers * heads if stored is None else len(stored)
    keep = list(range(min(6, len(prompts))))
    tokens = [
        prompts[i].get("tokens") or _tokens(prompts[i]["text"] + prompts[i]["answer"]) for i in keep
    ]
    out: dict[str, list[str]] = {"pre": [], "post": []}
    for words in tokens:
        for values in out.values():
            triangles = np.concatenate([_pattern(rng, len(words)) for _ in range(slots)])
            values.append(base64.b64encode(gzip.compress(triangles.tobytes(), mtime=0)).decode())
    layers_heads = "all" if stored is None else [list(s) for s in stored]
    return {"prompts": keep, "tokens": tokens, "layers_heads": layers_heads, "scale": 255, **out}


def _tokens(text: str) -> list[str]:
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


def _pattern(rng: np.random.Generator, t: int) -> np.ndarray:
    weights = np.exp(rng.normal(0, 1.2, (t, t)))
    weights[:, 0] *= math.exp(1.5)
    weights = np.tril(weights)
    weights /= weights.sum(1, keepdims=True)
    return np.round(255 * weights[np.tril_indices(t)]).astype(np.uint8)
