"""What each component writes straight into the answer: one capture, nothing is rewritten."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.models.beside import beside_the_model
from mechforget.models.protocol import Model
from mechforget.sweeps.donor import capture, tokens

if TYPE_CHECKING:
    from torch import Tensor

    from mechforget.tasks.encoded import Encoded


@beside_the_model
def attribute(model: Model, encoded: "Encoded") -> dict[str, np.ndarray]:
    """One checkpoint's contributions, [prompt, ...] each; NaN where there is no difference."""
    import torch

    prompt, row, position, right, wrong = _first_difference(encoded)
    spec, scale = model.spec, model.spec.scale
    layers = range(spec.layers)
    shapes = {"heads": (spec.layers, spec.heads), "mlps": (spec.layers,)}
    found = {
        name: np.full((encoded.n_prompts, *shapes.get(name, ())), np.nan)
        for name in ("heads", "mlps", "embed", "rest", "logit_diff")
    }
    if not len(prompt):
        return found
    names = ("z", "attn_raw", "attn_out", "mlp_out")
    points = [(layer, name) for layer in layers for name in names]
    points += [(0, "resid_pre"), (spec.layers - 1, "resid_post")]
    ids = tokens(encoded, model)
    seen = capture(model, ids, points)
    dtype = seen[0, "resid_pre"].dtype
    # [case, ...], in float32, so that parts add up; layers may lie on several devices
    final = seen[spec.layers - 1, "resid_post"][row, position].float()
    at = {p: t[row, position].to(final) for p, t in seen.items()}
    back, constant = frozen(lambda x: model.norm(0, "final", x.to(dtype)), final)
    unembedded, offset = (x.to(final) for x in _direction(model, right, wrong))
    direction = back(unembedded)  # d logit_diff / d final residual, scale held fixed
    total = torch.einsum("cd,cd->c", direction, final)
    total = total + torch.einsum("cd,cd->c", unembedded, constant) + offset
    heads, mlps = [], []
    for layer in layers:
        here = direction * scale
        if model.has(layer, "attn_post"):
            pull, _ = frozen(
                lambda x, layer=layer: model.norm(layer, "attn_post", x.to(dtype)),
                at[layer, "attn_raw"],
            )
            here = pull(here)
        w = torch.stack([model.weight(layer, "W_O", h)[0] for h in range(spec.heads)]).to(here)
        heads.append(torch.einsum("chv,hdv,cd->ch", at[layer, "z"], w, here))
        mlps.append(torch.einsum("cd,cd->c", at[layer, "mlp_out"], direction) * scale)
    parts: dict[str, Tensor] = {
        "heads": torch.stack(heads, 1),
        "mlps": torch.stack(mlps, 1),
        "embed": torch.einsum("cd,cd->c", at[0, "resid_pre"], direction),
    }
    said = parts["heads"].sum((1, 2)) + parts["mlps"].sum(1) + parts["embed"]
    parts |= {"rest": total - said, "logit_diff": total}
    for name, value in parts.items():
        found[name][prompt] = value.detach().double().cpu().numpy()
    return found


def frozen(
    norm: "Callable[[Tensor], Tensor]", x: "Tensor"
) -> "tuple[Callable[[Tensor], Tensor], Tensor]":
    """A norm at x as y = J x + b with its scale held fixed: (J's transpose, b), per row of x.

    Found by probing, so that it holds for every RMS or layer norm, whatever its parametrisation:
    b = norm(0); a norm that gives no more for a constant centres; a probe of mean 0 shows the gain.
    """
    import torch

    with torch.no_grad():
        constant = norm(torch.zeros_like(x)).to(x)
        y = norm(x).to(x) - constant
        flat = torch.ones_like(x[:1])
        probe = flat.clone()  # of mean 0, and nowhere 0
        probe[:, 1::2] = -1
        if x.shape[-1] % 2:
            probe[:, -3:] = torch.tensor([1.0, 1.0, -2.0])
        gain = (norm(probe).to(x) - constant[:1]) / probe
        centres = (norm(flat).to(x) - constant[:1]).abs().max() < 1e-3 * gain.abs().max()
        seen = gain * (x - x.mean(-1, keepdim=True) if centres else x)
        scale = (y * seen).sum(-1, keepdim=True) / (seen * seen).sum(-1, keepdim=True)

    def transpose(v: "Tensor") -> "Tensor":
        pulled = v * gain * scale
        return pulled - pulled.mean(-1, keepdim=True) if centres else pulled

    return transpose, constant


def _direction(model: Model, right: np.ndarray, wrong: np.ndarray) -> "tuple[Tensor, Tensor]":
    """W_U[right] - W_U[wrong] [case, d_model] and the difference of their output biases [case]."""
    w, b = model.unembedding()
    bias = 0 * w[right, 0] if b is None else b[right] - b[wrong]
    return w[right] - w[wrong], bias


def _first_difference(encoded: "Encoded") -> tuple[np.ndarray, ...]:
    """(prompt, row, position, right token, wrong token) of each prompt whose answers differ."""
    found: list[tuple[Any, ...]] = []
    for prompt in range(encoded.n_prompts):
        mine = encoded.read_prompt == prompt
        right, wrong = (np.flatnonzero(mine & (encoded.read_wrong == w)) for w in (False, True))
        for a, b in zip(right, wrong, strict=False):
            if encoded.read_target[a] != encoded.read_target[b]:
                at = encoded.read_row[a], encoded.read_position[a]
                found.append((prompt, *at, encoded.read_target[a], encoded.read_target[b]))
                break
    columns = np.array(found, dtype=np.int64).reshape(-1, 5).T
    return tuple(columns)
