"""The mechanisms' part of a synthetic bundle: seeded numbers in the shapes that a run gives."""

from typing import Any

import numpy as np

PARTS = ("W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out", "other")
LEDGER = ("W_Q", "W_K", "W_V", "W_O", "MLP", "other")
MEASURES = {
    "restore": "patching head_out, nats of log p given back",
    "break": "patching head_out, nats of log p taken",
    "dla_change": "direct logit attribution, post - pre, nats",
    "ledger": "share of the loss's rise written in its weights, nats",
    "graft": "grafting all its weights, restore, nats",
    "interference": "noise-corrected cosine of the two tasks' gradients",
    "attention_js": "Jensen-Shannon divergence of its pattern, bits",
    "weights": "relative change of its weights",
}
CLAIMS = (
    ("three mechanisms drive forgetting: interference, drift, flattening", "yes"),
    ("forgetting correlates with task similarity", "r = 0.87"),
    ("forgetting is larger where the tasks' gradients are opposed", "2.4×"),
    ("query and key matrices have the highest conflict rate", "Q, K"),
    ("share of heads severely disrupted", "15–23 %"),
    ("CKA falls in the middle layers", "0.32–0.47"),
    ("features rotate", "35–52°"),
    ("the landscape flattens around the old task's minimum", "flatter"),
    ("freezing and regularisation keep what was known", "47–71 %"),
    ("routing gates drift", "yes"),
    ("early heads disperse, deep representations collapse", "yes"),
    ("trajectories in weight space separate the regimes", "yes"),
    ("Low-Rank Circuit Projection mitigates", "94.2 %"),
)
VERDICTS = ("supported", "not supported", "cannot be told from this data")


def band(value: Any, half: Any, least: float = -np.inf, most: float = np.inf) -> dict[str, list]:
    value, half = np.ravel(value), np.broadcast_to(half, np.shape(value)).ravel()
    ends = {"low": value - half, "high": value + half}
    return {"value": value.tolist(), **{k: v.clip(least, most).tolist() for k, v in ends.items()}}


def drift(rng: np.random.Generator, layers: int, heads: int, size: float = 1.0) -> dict[str, Any]:
    x = np.arange(layers + 1) / layers
    hump = size * np.exp(-(((x - 0.55) / 0.28) ** 2))
    none = [None]
    angle = (8 + 62 * hump[1:] + rng.normal(0, 2, layers)).clip(0, 90)
    found = {
        "depth": list(range(layers + 1)),
        "cka": band(1 - 0.42 * hump, 0.015 + 0.06 * hump, 0, 1),
        "procrustes": (0.3 * hump).tolist(),
        "angle_median": none + (0.45 * angle).tolist(),
        "angle_largest": none + angle.tolist(),
        "k": [0] + [6] * layers,
        "rank_pre": (3 + 14 * x).tolist(),
        "rank_post": (3 + 14 * x - 4 * hump * x).tolist(),
        "shift": band(0.05 + 0.6 * hump, 0.04),
    }
    found["cka"] = {k: none + v[1:] for k, v in found["cka"].items()}
    return found


def _heads(rng: np.random.Generator, layers: int, heads: int) -> dict[str, Any]:
    size = layers * heads
    moved = rng.beta(1.2, 9, size)
    angle = (90 * moved**0.5).clip(0, 90)
    return {
        "cka": band(1 - moved, 0.05, 0, 1),
        "angle_median": (angle / 2).tolist(),
        "angle_largest": angle.tolist(),
        "rank_pre": rng.uniform(2, 12, size).tolist(),
        "rank_post": rng.uniform(2, 12, size).tolist(),
        "shift": (0.9 * moved).tolist(),
    }


def _opposition(rng: np.random.Generator, names: list[str], centre: np.ndarray) -> dict[str, Any]:
    n = len(centre)
    cosine = centre + rng.normal(0, 0.03, n)
    half = rng.uniform(0.03, 0.08, n)
    p = np.where(abs(cosine) > 1.6 * half, 0.002, rng.uniform(0.05, 0.9, n))
    return {
        "names": names,
        "cosine": band(cosine, half),
        "corrected": band(1.4 * cosine, 1.5 * half),
        "conflict": band(0.5 - 1.1 * cosine, 0.9 * half, 0, 1),
        "dot": band(0.01 * cosine, 0.01 * half),
        "null_cosine": band(np.zeros(n), 0.06),
        "null_conflict": band(np.full(n, 0.5), 0.09),
        "p": p.tolist(),
        "q": np.minimum(1, 3 * p).tolist(),
    }


def interference(rng: np.random.Generator, layers: int) -> dict[str, Any]:
    lean = np.array([-0.16, -0.13, 0.02, -0.05, 0.06, 0.05, 0.01, 0.0])
    depth = np.exp(-(((np.arange(layers) / layers - 0.6) / 0.3) ** 2))
    point = lambda at, scale: {  # noqa: E731
        "at": at,
        "parts": _opposition(rng, ["all", *PARTS, "embed", "final"], scale * np.array([-0.05, *lean, 0.02, 0.0])),
        "map": _opposition(rng, list(PARTS), (scale * 1.6 * lean[:, None] * depth).ravel()),
    }  # fmt: skip
    return {
        "minibatches": {"old": 8, "new": 8},
        "layers": list(range(layers)),
        "points": [point(0.0, 1.0), point(1.0, 0.6)],
    }


def _line(t: np.ndarray, loss: np.ndarray, barrier: list[float], at: float) -> dict[str, Any]:
    return {"t": t.tolist(), "loss": band(loss, 0.05 + 0.12 * loss), "barrier": barrier, "barrier_at": at}  # fmt: skip


def landscape(rng: np.random.Generator, layers: int) -> dict[str, Any]:
    t = np.arange(11) / 10
    parts = [p for _ in range(layers) for p in ("attention", "mlp")] + ["rest"]
    trace = rng.gamma(2, 4, (2, len(parts)))
    return {
        "lines": {
            "old": _line(t, 0.62 + 2.81 / (1 + np.exp(-11 * (t - 0.62))), [0.31, 0.18, 0.47], 0.8),
            "new": _line(t, 3.9 * (1 - t) ** 1.6 + 0.21, [0.0, 0.0, 0.0], 0.0),
        },
        "curvature": {
            "note": "",
            "prompts": 16,
            "trace": {"value": [212.4, 141.8], "se": [13.1, 10.9]},
            "gauss_newton": {"value": [230.2, 166.3], "se": [2.2, 2.9]},
            "eigenvalue": {"value": [41.7, 19.3], "se": [0.02, 0.01]},
            "flattening": {
                "trace": [0.668, 0.561, 0.79],
                "gauss_newton": [0.722, 0.69, 0.755],
                "eigenvalue": [0.463, 0.4627, 0.4633],
            },
            "modules": {
                "part": parts,
                "layer": [i // 2 if p != "rest" else None for i, p in enumerate(parts)],
                "value": trace.tolist(),
                "se": (0.1 * trace).tolist(),
            },
        },
        "sharpness": {"value": [0.0312, 0.0204], "se": [0.0021, 0.0018]},
    }


def ledger(rng: np.random.Generator, layers: int, heads: int, lost: float) -> dict[str, Any]:
    depth = np.exp(-(((np.arange(layers) / layers - 0.25) / 0.2) ** 2))
    weight = np.array([0.06, 0.04, 0.36, 0.3, 0.2, 0.02])[:, None]
    cells = weight * depth / depth.sum() * rng.normal(1, 0.5, (6, layers))
    cells = cells * lost * 0.97 + rng.normal(0, 0.004, (6, layers))
    rest = np.array([0.04, -0.01, 0.02]) * lost
    gap = 0.0004 * lost
    cells *= (lost - gap - rest.sum()) / cells.sum()
    of_head = rng.normal(0, 0.008, (layers, heads)) + 0.6 * cells[:4].sum(0)[:, None] / heads
    return {
        "n": 24,
        "parts": list(LEDGER),
        "layers": list(range(layers)),
        "cells": band(cells, 0.004 + 0.1 * abs(cells)),
        "by_layer": band(cells.sum(0), 0.01 + 0.12 * abs(cells.sum(0))),
        "by_part": band(cells.sum(1), 0.03),
        "rest": {"names": ["embed", "unembed", "final"], **band(rest, 0.02)},
        "whole": {"names": ["change", "gap"], **band([lost, gap], [0.4, 0.001])},
        "heads": band(of_head, 0.012 + 0.1 * abs(of_head)),
        "nodes": 16,
    }


def readout(layers: int) -> dict[str, Any]:
    x = np.arange(layers + 1) / layers
    before = 0.12 + 0.82 / (1 + np.exp(-14 * (x - 0.45)))
    values = {
        "pre": before,
        "as_is": 0.12 + 0.4 * (before - 0.12),
        "aligned": 0.12 + 0.75 * (before - 0.12),
        "refit": 0.12 + 0.93 * (before - 0.12),
        "shuffled": np.full(layers + 1, 0.125),
    }
    words = np.where(x < 0.3, "unreadable", np.where(x < 0.5, "cannot be told", "misread"))
    return {
        "n": 24,
        "caveat": "",
        "candidates": 24,
        "tokens": 4431,
        "depth": list(range(layers + 1)),
        "probes": {name: band(v, 0.02 + 0.05 * v, 0, 1) for name, v in values.items()},
        "verdict": words.tolist(),
    }


def routing(rng: np.random.Generator, layers: int, experts: int) -> dict[str, Any]:
    at = list(range(0, layers, 1))
    n = len(at)
    js = 0.02 + 0.25 * np.exp(-(((np.arange(n) / n - 0.5) / 0.25) ** 2))
    pre = rng.dirichlet(np.full(experts, 2.0), n)
    post = pre * rng.uniform(0.4, 1.6, pre.shape)
    post /= post.sum(1, keepdims=True)
    entropy = lambda p: (-p * np.log2(p)).sum(1).tolist()  # noqa: E731
    given = {"layer": band(0.4 * js, 0.03), "every": band([0.61], 0.1)}
    return {
        "rule": "softmax",
        "layers": at,
        "experts": experts,
        "overlap": band(1 - 1.6 * js, 0.03, 0, 1),
        "js": band(js, 0.015, 0, 1),
        "load_pre": pre.ravel().tolist(),
        "load_post": post.ravel().tolist(),
        "load_change": (post - pre).ravel().tolist(),
        "load_js": (0.3 * js).tolist(),
        "load_entropy_pre": entropy(pre),
        "load_entropy_post": entropy(post),
        "angle": rng.uniform(2, 40, n * experts).tolist(),
        "restored": {"restore": given, "break": given},
    }


def agreement(rng: np.random.Generator) -> dict[str, Any]:
    names = list(MEASURES)
    pairs = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            rho = float(np.clip(rng.normal(0.35, 0.3), -0.4, 0.97))
            pairs.append({"a": a, "b": b, "spearman": rho, "low": max(-1, rho - 0.2), "high": min(1, rho + 0.18), "n": 270})  # fmt: skip
    return {"names": names, "means": dict(MEASURES), "pairs": pairs}


def claims() -> list[dict[str, Any]]:
    found = []
    for i, (text, paper) in enumerate(CLAIMS):
        verdict = VERDICTS[(0, 2, 2, 0, 1, 0, 0, 0, 2, 2, 1, 2, 2)[i]]
        told = verdict != VERDICTS[2]
        found.append({
            "claim": i + 1, "text": text, "paper": paper,
            "value": 0.041 * (i + 1) if told else None, "low": 0.03 * (i + 1) if told else None, "high": 0.052 * (i + 1) if told else None,
            "n": 24 if told else None, "unit": ("share", "°", "")[i % 3], "verdict": verdict,
            "why": "the 95 % interval lies inside what the paper says" if told else "needs several pairs of tasks; this run has one",
            "how": "mechforget compare PRE POST --task TASK --measures all",
        })  # fmt: skip
    return found


def mechanisms(
    rng: np.random.Generator, layers: int, heads: int, lost: float, experts: int
) -> dict[str, Any]:
    moved = drift(rng, layers, heads) | {"n": 24, "caveat": "24 distinct prompts, 32 are wanted: geometry is mostly the sample's"}  # fmt: skip
    moved |= {"twin": drift(rng, layers, heads, 0.12), "heads": {s: _heads(rng, layers, heads) for s in ("z", "head_out")}}  # fmt: skip
    return {
        "drift": moved,
        "interference": interference(rng, layers),
        "landscape": landscape(rng, layers),
        "ledger": ledger(rng, layers, heads, lost),
        "readout": readout(layers),
        "routing": routing(rng, layers, experts) if experts else None,
        "agreement": agreement(rng),
        "claims": claims(),
        "tables": [],
    }
