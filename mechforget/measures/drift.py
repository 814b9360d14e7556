"""Representational drift: how far the same prompts' activations moved between two checkpoints."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.measures.explained import described
from mechforget.measures.forgetting import AT
from mechforget.measures.inputs import Inputs, measure
from mechforget.models.sites import Spec
from mechforget.shapes import Array, Float, Shaped
from mechforget.statistics import caveat, unbiased_cka
from mechforget.statistics.cka import centred
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.reads import clusters, head_outputs, prompt_tokens, read

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.models.protocol import Point

ANGLES = 10  # principal directions compared, at most
FEW = 32  # clusters below which geometry is mostly the sample's
SEEN = 1e-4  # of the largest singular value: smaller ones are a float's rounding
HEADS = ("z", "head_out")
DESCRIPTIONS = {  # of what `change` returns
    "cka": ("1", "unbiased CKA of pre and post"),
    "procrustes": ("1", "Procrustes distance of pre and post"),
    "angle": ("degree", "principal angles between the principal directions"),
    "k": ("directions", "number of principal directions compared"),
    "rank": ("directions", "effective rank of the activations"),
    "shift": ("1", "relative distance of the activations"),
}


def change(
    pre: Float[Array, "prompt d"], post: Float[Array, "prompt d"], cluster: Shaped[Array, " prompt"]
) -> dict[str, np.ndarray]:
    """Drift of one site from its activations before and after, of the same prompts.

    Returns: `cka` [bound]: value, low, high, see `statistics.unbiased_cka`. `procrustes`:
        1 - ‖XᵀY‖_* of centred matrices of Frobenius norm 1, 0 (rotated at most) to 1. `angle`
        [10]: principal angles between the `k` largest principal directions, degrees, ascending,
        NaN beyond k. `rank` [2]: exp H(σ² / Σσ²) of pre and of post, 1 to d. `shift` [prompt]:
        ‖y - x‖ / ‖x‖, 0 where bit for bit the same. NaN where one side's prompts are all alike.
    k: at most 10, a quarter of the clusters (more are the sample's own), half of the width (larger
        subspaces meet anyway), and what stands out of rounding in both.
    """
    from scipy.linalg import subspace_angles

    raw, other = (np.asarray(a, np.float64) for a in (pre, post))
    norm = np.linalg.norm(raw, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.linalg.norm(other - raw, axis=1) / norm
    x, y = _shared_basis(centred(raw), centred(other))
    (ux, sx, vx), (uy, sy, vy) = (np.linalg.svd(m, full_matrices=False) for m in (x, y))
    n, tolerance = len(np.unique(cluster)), SEEN * np.array([[sx[0]], [sy[0]]])
    seen = int((np.stack([sx, sy]) > tolerance).sum(1).min())
    k = min(ANGLES, n // 4, raw.shape[1] // 2, seen)
    angle = np.full(ANGLES, np.nan)
    if k:
        angle[:k] = np.degrees(np.sort(subspace_angles(vx[:k].T, vy[:k].T)))
    with np.errstate(divide="ignore", invalid="ignore"):
        within = (sx[:, None] * (ux.T @ uy) * sy) / (np.linalg.norm(sx) * np.linalg.norm(sy))
        held = [s**2 / (s**2).sum() for s in (sx, sy)]
    nuclear = np.linalg.svd(within, compute_uv=False).sum() if np.isfinite(within).all() else np.nan
    return {
        "cka": np.array(unbiased_cka(x, y, cluster)),
        "procrustes": np.clip(1 - nuclear, 0, 1),
        "angle": angle,
        "k": np.array(k),
        "rank": np.array([np.exp(-(p * np.log(np.where(p > 0, p, 1))).sum()) for p in held]),
        "shift": np.where(norm > 0, shift, np.nan),
    }


def _shared_basis(
    x: Float[Array, "prompt d"], y: Float[Array, "prompt d"]
) -> tuple[Float[Array, "prompt span"], Float[Array, "prompt span"]]:
    """Both in an orthonormal basis of the space that their rows span: an isometry, exact."""
    if 2 * len(x) >= x.shape[1]:
        return x, y
    basis, _ = np.linalg.qr(np.concatenate([x, y]).T)
    return x @ basis, y @ basis


@measure
def drift(inputs: Inputs, *, position: int = -1) -> "xr.Dataset":
    """How far the stream, and each head, moved; a row is one token of a prompt, so rows are
    independent. position: from the prompt's end; the default is its last token.

    A seed twin of post gives the band of mere training noise: the same of (post, twin).
    Returns: of the residual stream `resid_*` along depth (0: resid_pre of layer 0; l + 1:
        resid_post of layer l), of heads `head_*` along (site: z and head_out, layer, head), each:
        `cka` (bound: value, low, high), `procrustes`, `angle` (degrees) and `k` of them, `rank`
        (at) and `shift` (prompt), as `change` defines them. CKA and Procrustes do not
        see rotations; angles and shift do. A head whose inner basis turned, while W_O undoes the
        turn, has moved in z and not in head_out.
    Attributes: `n`: clusters; those that share a prompt, up to its token, are one. `caveat`: what
        few of them mean.
    Raises: SweepError: a site is missing. MeasureError: the token would be the prompt's first; inf.
    Source: Kornblith et al. 2019, 1905.00414; Ding et al. 2021, 2108.01661 (Procrustes); Roy &
        Vetterli 2007, 10.5281/zenodo.40397 (effective rank; theirs of σ, ours of σ², the variance).
        Blind: Procrustes and angles are the sample's own below a few rows per dimension (of 32
        unrelated rows 512 wide, Procrustes is near 0; CKA isn't fooled), and have no interval;
        directions of equal variance have arbitrary angles.
    Examples:
        >>> found = drift(planted)
        >>> found.resid_shift.max("prompt").values > 0  # the stream moves after layer 1
        array([False, False,  True,  True])
        >>> found.resid_cka.sel(bound="value", depth=0).item().__round__(6)
        1.0
    """
    spec = inputs.post.spec
    for site in ("resid_pre", "resid_post", *HEADS):
        spec.require(site)
    prompt_tokens(inputs.encoded, position)  # refused before the first forward

    def some(chunk: Chunk) -> "xr.Dataset":
        return _rows(inputs, chunk, position)

    rows = inputs.over_prompts(f"drift at {position}", some, variants=0)
    rows = rows.assign_coords(cluster=("prompt", clusters(inputs.encoded, position)))
    found = _measured(inputs, rows).assign_attrs(position=position)
    named = {
        f"{prefix}_{name}": (units, f"{text} of {of}")
        for prefix, of in (("resid", "the residual stream"), ("head", "a head"))
        for name, (units, text) in DESCRIPTIONS.items()
    }
    return described(found, "1905.00414", **named)


def stream(spec: Spec) -> "list[Point]":
    """The residual stream before the first layer and after each, by depth."""
    return [(0, "resid_pre"), *((layer, "resid_post") for layer in range(spec.layers))]


def _rows(inputs: Inputs, chunk: Chunk, position: int) -> "xr.Dataset":
    """The chunk's activations at its tokens, float32: 8 · (layers + 1 + layers) · d_model bytes a
    prompt. Of head_out only z is kept: W_O makes it again."""
    import xarray as xr

    ids, at = prompt_tokens(chunk.encoded, position)
    heads: list[Point] = [(layer, "z") for layer in range(inputs.post.spec.layers)]
    depths = stream(inputs.post.spec)
    found = []
    for model in (inputs.pre, inputs.post):
        got = read(model, ids, [*depths, *heads], np.arange(len(at)), at, memory=inputs.memory)
        found.append({point: value.float().numpy() for point, value in got.items()})
    data: dict[str, Any] = {
        "resid": (
            ("at", "prompt", "depth", "d"),
            np.stack([np.stack([f[p] for p in depths], 1) for f in found]),
        )
    }
    for layer, name in heads:  # by layer: heads may be of several widths
        dims = ("at", "prompt", "head", f"d_{layer}")
        data[f"z_{layer}"] = dims, np.stack([f[layer, name] for f in found])
    coords = {"at": list(AT), "cluster": ("prompt", chunk.encoded.cluster)}
    return xr.Dataset(data, coords)


def _measured(inputs: Inputs, rows: "xr.Dataset") -> "xr.Dataset":
    import torch
    import xarray as xr

    cluster, spec = rows.cluster.values, inputs.post.spec
    resid = rows.resid.transpose("depth", "at", ...).values
    depths = [change(pre, post, cluster) for pre, post in resid]
    of_site: dict[str, list[Any]] = {site: [] for site in HEADS}
    for layer in range(spec.layers):
        z = rows[f"z_{layer}"].values
        both = zip((inputs.pre, inputs.post), z, strict=True)
        out = [head_outputs(model, layer, torch.as_tensor(one)).numpy() for model, one in both]
        for site, (pre, post) in (("z", z), ("head_out", out)):
            each = [change(pre[:, h], post[:, h], cluster) for h in range(spec.heads)]
            of_site[site].append(each)
    dims = {"cka": ("bound",), "angle": ("angle",), "rank": ("at",), "shift": ("prompt",)}
    data: dict[str, Any] = {}
    for name in depths[0]:
        own = dims.get(name, ())
        data[f"resid_{name}"] = ("depth", *own), np.stack([d[name] for d in depths])
        heads = [[[h[name] for h in layer] for layer in of_site[site]] for site in HEADS]
        data[f"head_{name}"] = ("site", "layer", "head", *own), np.array(heads)
    n = len(np.unique(cluster))
    few = f"{n} distinct prompts, {FEW} are wanted: geometry is mostly the sample's"
    said = [few if n < FEW else "", caveat(n)]
    coords = {
        "at": list(AT),
        "bound": ["value", "low", "high"],
        "depth": range(spec.layers + 1),
        "site": list(HEADS),
        "layer": range(spec.layers),
        "head": range(spec.heads),
        "angle": range(1, ANGLES + 1),
        "prompt": rows.prompt.values,
        "cluster": ("prompt", cluster),
    }
    return xr.Dataset(data, coords, {"n": n, "caveat": "; ".join(s for s in said if s)})
