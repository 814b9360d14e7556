"""Drift and the difference of weights, as one would write them in a notebook."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import subspace_angles
from torch import Tensor
from torch.linalg import vector_norm

from benchmarks.peers import places
from benchmarks.prompts import Sequences


class Drift:
    """CKA, Procrustes distance, principal angles, effective rank and relative distance of the last
    prompt token's activations: of the residual stream, and of each head's z and head_out. One site
    after the other, in as many dimensions as it has; no intervals."""

    def __init__(self, models: Sequence[Any], sequences: Sequences) -> None:
        self.models, self.sequences = models, sequences
        self.ids, row, position, _ = places.tensors(sequences, models[0].device)
        first = np.searchsorted(sequences.prompt, np.arange(sequences.prompts))
        self.at = row[first], position[first]

    def run(self, _: Sequence[int] = ()) -> dict[str, np.ndarray]:
        """quantity -> resid by depth, then z by layer and head, then head_out, in one row."""
        with torch.no_grad():
            sites = [self._sites(model) for model in self.models]
        found = [compared(x, y) for x, y in zip(*sites, strict=True)]
        return {name: np.array([one[name] for one in found]) for name in found[0]}

    def _sites(self, model: Any) -> list[np.ndarray]:
        c, z, resid = model.config, list[Tensor](), list[Tensor]()
        handles = [
            places.place(model, layer, "z").hook(lambda t: z.append(t[self.at]))
            for layer in range(c.num_hidden_layers)
        ]
        blocks = list(places.layers(model))
        handles.append(
            blocks[0].register_forward_pre_hook(lambda m, args: resid.append(args[0][self.at]))
        )
        handles += [
            block.register_forward_hook(lambda m, args, out: resid.append(_first(out)[self.at]))
            for block in blocks
        ]
        with places.hooked(handles):
            places.body(model)(self.ids, use_cache=False)
        heads, out = [], []
        for layer, value in enumerate(z):
            for head, mine in enumerate(value.unflatten(-1, (c.num_attention_heads, -1)).unbind(1)):
                heads.append(mine)
                out.append(mine @ places.w_o(model, layer, head))
        return [t.double().cpu().numpy() for t in [*resid, *heads, *out]]


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def compared(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The same quantities of two matrices [prompt, d], each by its textbook formula."""
    shift = float((np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1)).mean())
    if (x == x[0]).all() or (y == y[0]).all():  # embeddings of one token: nothing varies
        return dict.fromkeys(("cka", "procrustes", "angle", "rank"), np.nan) | {"shift": shift}
    x, y = x - x.mean(0), y - y.mean(0)
    k, m = x @ x.T, y @ y.T
    cka = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    scaled = x / np.linalg.norm(x), y / np.linalg.norm(y)
    nuclear = np.linalg.svd(scaled[0].T @ scaled[1], compute_uv=False).sum()
    (_, sx, vx), (_, sy, vy) = (np.linalg.svd(a, full_matrices=False) for a in (x, y))
    top = min(10, len(x) // 4, x.shape[1] // 2)
    angle = float(np.degrees(subspace_angles(vx[:top].T, vy[:top].T)).max()) if top else np.nan
    ranks = []
    for s in (sx, sy):
        p = s**2 / (s**2).sum()
        ranks.append(float(np.exp(-(p * np.log(np.maximum(p, 1e-300))).sum())))
    return {
        "cka": float(cka),
        "procrustes": 1 - float(nuclear),
        "angle": angle,
        "rank": ranks[1],
        "shift": shift,
    }


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, equation 5."""
    n = len(k)
    k, m = (np.where(np.eye(n, dtype=bool), 0, a) for a in (k, m))
    middle = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
    return float(((k * m).sum() + middle) / (n * (n - 3)))


def weights(folders: Sequence[Path], _: Sequence[int] = ()) -> dict[str, dict[str, float]]:
    """quantity -> tensor -> number, of both state dicts in memory, one tensor after the other.

    Squares are summed in float64: in float32 the norm of SmolLM2's embedding is 0.3 % too small.
    """
    from safetensors.torch import load_file

    def state(folder: Path) -> dict[str, Tensor]:
        files = sorted(folder.glob("*.safetensors"))
        return {name: t for file in files for name, t in load_file(file).items()}

    pre, post = map(state, folders)
    found: dict[str, dict[str, float]] = {"norm": {}, "norm_pre": {}, "largest": {}, "changed": {}}
    for name, before in pre.items():
        step = post[name].float() - before.float()
        found["norm"][name] = float(vector_norm(step, dtype=torch.float64))
        found["norm_pre"][name] = float(vector_norm(before, dtype=torch.float64))
        found["largest"][name] = float(step.abs().max())
        found["changed"][name] = float((step != 0).float().mean())
    return found
