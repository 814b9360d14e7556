"""Direct logit attribution: what each component adds to the answer's logit difference. It takes
one forward pass in which nothing is rewritten."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.models.beside import beside_the_model
from mechforget.models.protocol import Model
from mechforget.sweeps.donor import capture

if TYPE_CHECKING:
    from torch import Tensor

    from mechforget.tasks.encoded import Encoded


@beside_the_model
def attribute(model: Model, encoded: "Encoded") -> dict[str, np.ndarray]:
    """One checkpoint's contributions, [prompt, ...] each; NaN for prompts whose right and wrong
    answers don't differ, or that have no wrong one."""
    import torch
    from einops import einsum, reduce

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
    seen = capture(model, encoded.fed, points, encoded.parent)
    dtype = seen[0, "resid_pre"].dtype
    # A case is a prompt whose answers differ. In float32, so that the parts add up; activations
    # may be on several devices.
    final = seen[spec.layers - 1, "resid_post"][row, position].float()
    at = {p: t[row, position].to(final) for p, t in seen.items()}
    back, constant = frozen(lambda x: model.norm(0, "final", x.to(dtype)), final)
    unembedded, offset = (x.to(final) for x in _direction(model, right, wrong))
    direction = back(unembedded)  # d logit_diff / d final residual, scale held fixed
    total = einsum(direction, final, "case d, case d -> case")
    total = total + einsum(unembedded, constant, "case d, case d -> case") + offset
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
        z = at[layer, "z"]
        heads.append(einsum(z, w, here, "case head v, head d v, case d -> case head"))
        mlps.append(einsum(at[layer, "mlp_out"], direction, "case d, case d -> case") * scale)
    parts: dict[str, Tensor] = {
        "heads": torch.stack(heads, 1),
        "mlps": torch.stack(mlps, 1),
        "embed": einsum(at[0, "resid_pre"], direction, "case d, case d -> case"),
    }
    said = reduce(parts["heads"], "case layer head -> case", "sum")
    said = said + reduce(parts["mlps"], "case layer -> case", "sum") + parts["embed"]
    parts |= {"rest": total - said, "logit_diff": total}
    for name, value in parts.items():
        found[name][prompt] = value.detach().double().cpu().numpy()
    return found


def frozen(
    norm: "Callable[[Tensor], Tensor]", x: "Tensor"
) -> "tuple[Callable[[Tensor], Tensor], Tensor]":
    """A norm at x, with its scale held fixed, is linear: y = J x + b. Returns the product with J's
    transpose, and b, per row of x.

    They are found by probing, which works for every RMS or layer norm however it is parametrised:
    b = norm(0); a norm that maps constant vectors to b subtracts the mean; and a probe of mean 0
    shows the gain.
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
    """(prompt, row, position, right token, wrong token) where the answers of a prompt first differ,
    for each prompt whose answers do."""
    found: list[tuple[Any, ...]] = []
    for prompt in range(encoded.n_prompts):
        mine = encoded.read_prompt == prompt
        right, wrong = (np.flatnonzero(mine & (encoded.read_wrong == w)) for w in (False, True))
        for a, b in zip(right, wrong, strict=False):
            if encoded.read_target[a] != encoded.read_target[b]:
                at = encoded.at(encoded.read_row[a], encoded.read_position[a])
                found.append((prompt, *at, encoded.read_target[a], encoded.read_target[b]))
                break
    columns = np.array(found, dtype=np.int64).reshape(-1, 5).T
    return tuple(columns)
