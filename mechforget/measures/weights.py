"""Weights: how far each matrix, head, group and expert moved, in what directions, and on what path.

What is *written*, not what it does: a large change may be harmless, and a small one may not.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.checkpoints import Pair, Sequence
from mechforget.errors import MeasureError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from mechforget.checkpoints.stream import Stored, Sums

SMALL = 1 << 18  # values of a matrix whose spectra are had without asking: 512 x 512
TOP = 8  # singular directions that are compared
KEYS = ("tensor", "layer", "matrix", "kind", "unit")
NUMBERS = ("relative", "norm", "norm_pre", "largest", "changed")
SPECTRA = ("stable_rank", "effective_rank", "overlap_left", "chance_left")
SPECTRA += ("overlap_right", "chance_right")


@dataclass(frozen=True)
class Spectrum:
    """σ, descending, and the first k left and right singular vectors in columns."""

    values: np.ndarray
    left: np.ndarray
    right: np.ndarray


def spectrum(w: np.ndarray, k: int) -> Spectrum:
    """Of [rows, columns], by the eigenvectors of the smaller Gram matrix, in float64.

    A σ below √ε σ_1 (1.5e-8 of the largest) is taken as 0, which is what squaring can't tell apart.
    """
    import scipy.linalg

    tall = w.shape[0] >= w.shape[1]
    short = min(w.shape)
    gram, step = np.zeros((short, short)), max(1, (1 << 24) // short)
    long = w if tall else w.T  # [long, short]
    for start in range(0, len(long), step):
        some = long[start : start + step].astype(np.float64)
        gram += some.T @ some
    squares, vectors = scipy.linalg.eigh(gram, overwrite_a=True, check_finite=False)
    squares, vectors = squares[::-1].clip(0), vectors[:, ::-1]
    floor = squares[0] * max(w.shape) * np.finfo(np.float64).eps
    values = np.sqrt(np.where(squares > floor, squares, 0))
    k = min(k, int((values > 0).sum()))
    inner = np.ascontiguousarray(vectors[:, :k])
    outer = np.concatenate(
        [long[i : i + step].astype(np.float64) @ inner for i in range(0, len(long), step)]
    )
    outer /= values[:k]
    return Spectrum(values, *((outer, inner) if tall else (inner, outer)))


def stable_rank(values: np.ndarray) -> float:
    """Σ σ² / σ_1², 1 to the rank; NaN of zero (Rudelson & Vershynin 2007)."""
    return float((values**2).sum() / values[0] ** 2) if values[0] > 0 else np.nan


def effective_rank(values: np.ndarray) -> float:
    """exp H(σ / Σ σ), 1 to the rank; NaN of zero (Roy & Vetterli 2007)."""
    if not values[0] > 0:
        return np.nan
    p = values[values > 0] / values.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """‖AᵀB‖_F² / k of two orthonormal [d, k]: 0 orthogonal, 1 the same; by chance k / d.

    k: of the smaller, where one has a lower rank. NaN where one is empty.
    """
    k = min(a.shape[1], b.shape[1])
    return float(((a[:, :k].T @ b[:, :k]) ** 2).sum() / k) if k else np.nan


def trajectory(gram: np.ndarray) -> dict[str, np.ndarray]:
    """From the inner products of steps [..., s, t], u_t = θ_t - θ_(t-1), t = 1 … T.

    Returns: `path` Σ ‖u_t‖ and `displacement` ‖θ_T - θ_0‖ [...]; `step` ‖u_t‖ [..., t]; `cosine`
        [..., t] of u_t and u_(t-1), NaN at t = 1 and beside steps of 0; `coordinate`
        [..., checkpoint 0 … T, component]: principal components of the checkpoints, centred; their
        sign is that of the last checkpoint, made positive; `explained` [..., component], shares.
    """
    T = gram.shape[-1]
    norms = np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0))
    cosine = np.full(norms.shape, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        turn = np.diagonal(gram, 1, axis1=-2, axis2=-1) / (norms[..., 1:] * norms[..., :-1])
    cosine[..., 1:] = np.clip(turn, -1, 1)
    sums = np.tril(np.ones((T + 1, T)), -1)  # θ_t - θ_0 = Σ u_s, s <= t
    centred = sums - sums.mean(0)
    among = centred @ gram @ centred.T
    squares, vectors = np.linalg.eigh((among + among.swapaxes(-1, -2)) / 2)
    squares, vectors = squares[..., ::-1].clip(0)[..., :T], vectors[..., ::-1][..., :T]
    vectors = vectors * np.where(vectors[..., -1:, :] < 0, -1, 1)
    total = squares.sum(-1, keepdims=True)
    return {
        "path": norms.sum(-1),
        "displacement": np.sqrt(np.maximum(gram.sum((-1, -2)), 0)),
        "step": norms,
        "cosine": cosine,
        "coordinate": vectors * np.sqrt(squares)[..., None, :],
        "explained": squares / np.where(total > 0, total, np.nan),
    }


def weights(subject: Pair | Sequence, *, spectra: bool | None = None, k: int = TOP) -> "xr.Dataset":
    """How far the weights moved; streamed, without building a model or reading a tokenizer.

    spectra: of every matrix and expert; None: of those of at most 512 x 512 values.
    Returns, of a pair, ΔW = W_post - W_pre: `norm` ‖ΔW‖_F, `norm_pre` ‖W_pre‖_F, `relative` their
        ratio (0 where both are 0, inf where only W_pre is), `largest` max |ΔW|, `changed` the share
        of values that differ, each
        - per (layer, matrix, head): W_Q, W_K, W_V, W_O; of W_K and W_V a head is a group of heads
          and NaN stands after the last; only if the stored names and shapes tell where heads are;
        - `expert_…` per (layer, projection, expert), of mixtures;
        - `tensor_…` per tensor as stored (`name`, with coordinates `name_layer`, `name_matrix`; a
          fused tensor is also there as its W_Q, W_K and W_V), and of matrices the spectra:
          `tensor_stable_rank` ‖ΔW‖_F² / ‖ΔW‖_2², `tensor_effective_rank` exp H(σ / Σσ),
          `tensor_overlap_left` and `_right` ‖U_kᵀ U'_k‖_F² / k, of the top k singular vectors of ΔW
          and W_pre (left is the first stored axis), and what k random directions would have,
          `tensor_chance_left` k / d; experts likewise;
        - `total_…`: of all tensors.
        Of a sequence the same along `checkpoint` t = 1 … T, ΔW = W_t - W_0, and `path`,
        `displacement`, `step` and `cosine` (see `trajectory`) per head, expert, tensor, layer and
        in all; `layer_` and `total_coordinate` and `_explained` (PCA, components in columns); and
        `tensor_steps_left`, `_right`: the overlap of the top k of u_t and u_(t-1).
    Raises: CheckpointError: other names or shapes (before data is read), NaN, GGUF, quantised.
    Blind to what the change does: a rotated value basis is a large change without effect.
    """
    found = _collect(_checkpoints(subject), spectra, k)
    of_pair = isinstance(subject, Pair)
    dataset = _dataset(found, of_pair)
    said = {"spectra": str(spectra), "k": str(k)}
    return dataset.assign_attrs(
        measure="weights", settings=repr(said), notes="; ".join(found.notes)
    )


def table(pair: Pair, *, spectra: bool | None = None, k: int = TOP) -> "tuple[pd.DataFrame, str]":
    """The numbers of `weights(pair)` as one tidy table, and what is to be said about the pair.

    Columns: tensor, layer, matrix, kind (tensor, head, group, expert), unit, rows, columns, those
    of `weights`, and the spectra. A tensor's row comes before those of its parts.
    """
    found = _collect(_checkpoints(pair), spectra, k)
    return _frame(found).drop(columns="checkpoint"), "; ".join(found.notes)


@dataclass
class _Found:
    rows: list[dict[str, Any]]  # one per (tensor or part, checkpoint)
    grams: list[tuple[tuple[Any, ...], np.ndarray]]  # KEYS -> [s, t]
    steps: int
    notes: list[str]


def _checkpoints(subject: Pair | Sequence) -> "list[Stored]":
    from mechforget.checkpoints.stream import stored

    if isinstance(subject, Pair):
        return [stored(subject.pre), stored(subject.post)]
    if isinstance(subject, Sequence):
        return [stored(one) for one in subject.checkpoints]
    raise MeasureError(f"weights: got {type(subject).__name__}, want a Pair or a Sequence")


def _collect(all_of: "list[Stored]", spectra: bool | None, k: int) -> _Found:
    from mechforget.checkpoints.stream import sums

    if k < 1:
        raise MeasureError(f"weights(k={k}): want at least one singular direction")
    found = _Found([], [], len(all_of) - 1, _notes(all_of))
    total = None
    for one in sums(all_of, "weights"):
        rows = _rows_of(one)
        for keys, (rows_here, columns_here), cells in rows:
            numbers = _numbers(one, cells)
            gram = one.steps[:, :, cells].sum(-1)
            found.grams.append((keys, gram))
            more = _spectra(all_of, one, keys, cells, spectra, k)
            for t in range(found.steps):
                shape = {"rows": rows_here, "columns": columns_here}
                here = {n: v[t] for n, v in (numbers | more).items()}
                found.rows.append(
                    dict(zip(KEYS, keys, strict=True)) | {"checkpoint": t + 1} | shape | here
                )
        whole = _raw(one, slice(None)), one.steps.sum(-1)
        total = whole if total is None else (_add(total[0], whole[0]), total[1] + whole[1])
    assert total is not None, "a checkpoint has tensors"
    keys = ("", None, "", "total", None)
    found.grams.append((keys, total[1]))
    for t in range(found.steps):
        here = {n: v[t] for n, v in _finish(total[0]).items()}
        found.rows.append(dict(zip(KEYS, keys, strict=True)) | {"checkpoint": t + 1} | here)
    return found


def _notes(all_of: "list[Stored]") -> list[str]:
    first, notes = all_of[0], []
    for other in all_of[1:]:
        both = first.tensors.keys() & other.tensors.keys()
        if all(first.place(n) == other.place(n) for n in both) and not (first.added or other.added):
            notes.append(f"{first.ref} and {other.ref} are the same files: all differences are 0")
        kinds = {(first.tensors[n].dtype, other.tensors[n].dtype) for n in both}
        if mixed := sorted(kind for kind in kinds if kind[0] != kind[1]):
            said = ", ".join(f"{a} / {b}" for a, b in mixed)
            notes.append(f"stored as {said}, compared in float32: rounding shows as change")
    return notes


def _rows_of(one: "Sums") -> list[tuple[tuple[Any, ...], tuple[int, int], Any]]:
    """(keys, shape, cells) of a tensor, of the matrices fused in it, and of its parts."""
    at = one.layout
    cells = at.cells()
    expert = at.expert is not None
    unit = at.expert if expert else None
    whole = (one.name, at.layer, at.whole, "expert" if expert else "tensor", unit)
    rows: list[Any] = [(whole, (at.rows, at.columns), slice(None))]
    if not at.parts:
        return rows
    matrices = dict.fromkeys(part.matrix for part in cells)
    for matrix in matrices:
        here = [i for i, part in enumerate(cells) if part.matrix == matrix]
        if len(matrices) > 1:
            width = sum(cells[i].stop - cells[i].start for i in here)
            rows.append(((one.name, at.layer, matrix, "tensor", None), _shape(at, width), here))
        for i in here:
            kind = "group" if at.kind == "head" and matrix in ("W_K", "W_V") else at.kind
            width = cells[i].stop - cells[i].start
            rows.append(((one.name, at.layer, matrix, kind, cells[i].unit), _shape(at, width), [i]))
    return rows


def _shape(at: Any, width: int) -> tuple[int, int]:
    return (width, at.columns) if at.axis == 0 else (at.rows, width)


def _raw(one: "Sums", cells: Any) -> dict[str, Any]:
    return {
        "size": one.size[cells].sum(),
        "pre": one.pre[cells].sum(),
        "moved": one.moved[:, cells].sum(-1),
        "largest": one.largest[:, cells].max(-1, initial=0),
        "changed": one.changed[:, cells].sum(-1),
    }


def _add(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {n: np.maximum(a[n], b[n]) if n == "largest" else a[n] + b[n] for n in a}


def _numbers(one: "Sums", cells: Any) -> dict[str, np.ndarray]:
    return _finish(_raw(one, cells))


def _finish(raw: dict[str, Any]) -> dict[str, np.ndarray]:
    norm, pre = np.sqrt(raw["moved"]), np.sqrt(raw["pre"])
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(norm == 0, 0.0, norm / pre)
    return {
        "relative": relative,
        "norm": norm,
        "norm_pre": np.full(norm.shape, pre),
        "largest": raw["largest"],
        "changed": raw["changed"] / max(raw["size"], 1),
    }


def _spectra(
    all_of: "list[Stored]", one: "Sums", keys: tuple[Any, ...], cells: Any, asked: Any, k: int
) -> dict[str, Any]:
    """Per t, of a matrix or of one expert's; nothing for heads, vectors, and what is too large."""
    from mechforget.checkpoints.stream import matrix

    at, kind = one.layout, keys[3]
    part = None if isinstance(cells, slice) else [at.cells()[i] for i in cells]
    fused = part is None and len({p.matrix for p in at.parts}) > 1
    stacked = part is None and at.kind == "expert"
    if asked is False or kind in ("head", "group") or fused or stacked:
        return {}
    height = at.rows if part is None or at.axis else sum(p.stop - p.start for p in part)
    width = sum(p.stop - p.start for p in part) if part and at.axis else at.columns
    if min(height, width) < 2 or len(one.shape) < 2 or (asked is None and height * width > SMALL):
        return {}

    def get(s: int, t: int | None) -> np.ndarray:
        if part is None or at.axis:
            got = matrix(all_of, one.name, slice(0, at.rows), s, t)
            return (
                got if part is None else got[:, np.r_[tuple(slice(p.start, p.stop) for p in part)]]
            )
        ranges = [slice(p.start, p.stop) for p in part]
        return np.concatenate([matrix(all_of, one.name, r, s, t) for r in ranges])

    T = len(all_of) - 1
    found = {name: np.full(T, np.nan) for name in (*SPECTRA, "steps_left", "steps_right")}
    if T == 1:
        del found["steps_left"], found["steps_right"]
    if not one.moved[:, cells].any():
        return found
    pre = spectrum(get(0, None), k)
    last = None
    for t in range(T):
        d = spectrum(get(t + 1, 0), k)
        found["stable_rank"][t] = stable_rank(d.values)
        found["effective_rank"][t] = effective_rank(d.values)
        for side, length in (("left", height), ("right", width)):
            a, b = getattr(d, side), getattr(pre, side)
            found[f"overlap_{side}"][t] = overlap(a, b)
            used = min(a.shape[1], b.shape[1])
            found[f"chance_{side}"][t] = used / length if used else np.nan
        if T > 1:
            step = d if t == 0 else spectrum(get(t + 1, t), k)
            for side in ("left", "right"):
                if last is not None:
                    found[f"steps_{side}"][t] = overlap(getattr(step, side), getattr(last, side))
            last = step
    return found


def _frame(found: _Found) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame(found.rows)
    names = [*KEYS, "checkpoint", "rows", "columns", *NUMBERS]
    frame = frame.reindex(columns=[*names, *(c for c in SPECTRA if c in frame.columns)])
    whole = ("layer", "unit", "rows", "columns")
    return frame.astype({name: "Int64" for name in whole})


def _dataset(found: _Found, of_pair: bool) -> "xr.Dataset":
    import pandas as pd
    import xarray as xr

    frame = pd.DataFrame(found.rows)
    more = [c for c in (*SPECTRA, "steps_left", "steps_right") if c in frame.columns]
    # The Gram matrix's own numbers, one list per row of the frame's first checkpoint.
    walked = [trajectory(gram) for _, gram in found.grams]
    parts = []
    for prefix, kinds, dims in (
        ("", ("head", "group"), ("layer", "matrix", "head")),
        ("expert_", ("expert",), ("layer", "projection", "expert")),
        ("tensor_", ("tensor", "expert"), ("name",)),
        ("total_", ("total",), ()),
    ):
        pick = [i for i, (keys, _) in enumerate(found.grams) if keys[3] in kinds]
        if prefix == "tensor_":
            pick = [i for i in pick if found.grams[i][0][4] is None or _own(found, i)]
        if not pick:
            continue
        columns = [*NUMBERS, *(more if prefix in ("expert_", "tensor_") else [])]
        keys = pd.DataFrame([found.grams[i][0] for i in pick], columns=list(KEYS))
        keys = keys.rename(columns={"unit": dims[-1] if len(dims) == 3 else "unit"})
        keys = keys.rename(columns={"matrix": "projection"} if prefix == "expert_" else {})
        labels = _labels(keys)
        coords: dict[str, Any] = {}
        if len(dims) == 3:
            axes = [_ordered(keys[d]) for d in dims]
            at = tuple(
                np.array([axis.index(v) for v in keys[d]])
                for d, axis in zip(dims, axes, strict=True)
            )
            coords = dict(zip(dims, axes, strict=True))
            size = tuple(len(axis) for axis in axes)
        else:
            at, size = ((np.arange(len(pick)),), (len(pick),)) if dims else ((), ())
            if dims:
                coords = {"name": labels, "name_layer": ("name", _numbers_or(keys["layer"]))}
                coords["name_matrix"] = ("name", keys["matrix"].tolist())

        def spread(values: np.ndarray, at: Any = at, size: Any = size) -> np.ndarray:
            """[row, ...] -> [*dims, ...]."""
            if not size:
                return values[0]
            out = np.full((*size, *values.shape[1:]), np.nan)
            out[at] = values
            return out

        T = found.steps
        values = {c: frame[c].to_numpy(float).reshape(-1, T)[pick] for c in columns}
        here: dict[str, Any] = {}
        for c, v in values.items():
            if of_pair:
                here[prefix + c] = (dims, spread(v[:, 0]))
            else:
                here[prefix + c] = (("checkpoint", *dims), np.moveaxis(spread(v), -1, 0))
        if not of_pair:
            here |= _walk(prefix, dims, [walked[i] for i in pick], spread)
            coords["checkpoint"] = range(1, T + 1)
        parts.append(xr.Dataset(here, coords))
    if not of_pair:
        parts.append(_layers(found))
    return xr.merge(parts, join="outer", compat="no_conflicts")


def _own(found: _Found, i: int) -> bool:
    """Whether an expert's row is a stored tensor of its own, not a slice of a stacked one."""
    name = found.grams[i][0][0]
    return not any(k[0] == name and k[3] == "tensor" for k, _ in found.grams[max(0, i - 4096) : i])


def _labels(keys: "pd.DataFrame") -> list[str]:
    """A tensor's name; of a matrix fused in it, its name and the matrix."""
    first: dict[str, bool] = {}
    labels = []
    for name, matrix in zip(keys["tensor"], keys.get("matrix", keys["tensor"]), strict=True):
        labels.append(f"{name}[{matrix}]" if name in first else name)
        first[name] = True
    return labels


def _ordered(values: "pd.Series") -> list[Any]:
    seen = list(dict.fromkeys(values.tolist()))
    order = {m: i for i, m in enumerate(("W_Q", "W_K", "W_V", "W_O"))}
    return sorted(seen, key=lambda v: order.get(v, v) if isinstance(v, str) and v in order else v)


def _numbers_or(layers: "pd.Series") -> np.ndarray:
    return layers.to_numpy(float, na_value=np.nan)


def _walk(prefix: str, dims: Any, walked: Any, spread: Any) -> dict[str, Any]:
    names = {"path": (), "displacement": (), "step": ("checkpoint",), "cosine": ("checkpoint",)}
    if prefix in ("total_", "layer_"):
        names |= {"coordinate": ("point", "component"), "explained": ("component",)}
    found = {}
    for name, tail in names.items():
        values = spread(np.stack([w[name] for w in walked]))
        found[prefix + name] = ((*dims, *tail), values)
    return found


def _layers(found: _Found) -> "xr.Dataset":
    """The trajectory of each layer: its tensors' Gram matrices added up."""
    import xarray as xr

    grams: dict[int, np.ndarray] = {}
    seen = set()
    for (name, layer, *_), gram in found.grams:
        if layer is not None and name not in seen:  # the first row of a tensor is all of it
            grams[layer] = grams.get(layer, 0) + gram
            seen.add(name)
    layers = sorted(grams)
    walked = [trajectory(grams[layer]) for layer in layers]
    here = _walk("layer_", ("layer",), walked, lambda v: v)
    coords = {"layer": layers, "checkpoint": range(1, found.steps + 1)}
    return xr.Dataset(here, coords | {"point": range(found.steps + 1)})
