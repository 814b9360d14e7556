"""Weights: how far each matrix, head, group and expert moved, in which directions, on which path.

What is *written*, not what it does: a large change may be harmless, and a small one may not.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.checkpoints import Pair, Sequence
from mechforget.errors import CheckpointError, MeasureError
from mechforget.measures.explained import described, explained
from mechforget.measures.inputs import check_subject, only_settings
from mechforget.measures.spectra import effective_rank, overlap, spectrum, stable_rank
from mechforget.measures.trajectory import trajectory
from mechforget.models.sites import MATRICES

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from mechforget.checkpoints.stored import Stored
    from mechforget.checkpoints.stream import Sums

SMALL = 1 << 18  # spectra are computed by default of matrices of up to 512 × 512 values
TOP = 8  # singular directions that are compared
KEYS = ("tensor", "layer", "matrix", "kind", "unit")
NUMBERS = ("relative", "norm", "norm_pre", "largest", "changed")
SPECTRA = ("stable_rank", "effective_rank", "overlap_left", "chance_left")
SPECTRA += ("overlap_right", "chance_right")
STEPS = ("steps_left", "steps_right")  # of a sequence
WALK = ("path", "displacement", "step", "cosine")
WHOLE = ("layer", "unit", "rows", "columns")
DESCRIPTIONS = {
    "norm": ("weight", "Frobenius norm of the change"),
    "norm_pre": ("weight", "Frobenius norm before the change"),
    "relative": ("1", "relative change"),
    "largest": ("weight", "largest change of one value"),
    "changed": ("share", "values that differ"),
    "stable_rank": ("1", "stable rank of the change"),
    "effective_rank": ("1", "effective rank of the change"),
    "overlap_left": ("1", "overlap of the left singular vectors of the change and of pre"),
    "overlap_right": ("1", "overlap of the right singular vectors of the change and of pre"),
    "chance_left": ("1", "overlap of random left directions"),
    "chance_right": ("1", "overlap of random right directions"),
    "steps_left": ("1", "overlap of the left singular vectors of a step and of the one before"),
    "steps_right": ("1", "overlap of the right singular vectors of a step and of the one before"),
    "path": ("weight", "length of the path"),
    "displacement": ("weight", "distance from the first checkpoint to the last"),
    "step": ("weight", "length of each step"),
    "cosine": ("1", "cosine of each step and the one before"),
    "coordinate": ("weight", "principal components of the checkpoints"),
    "explained": ("share", "variance that each component explains"),
}
OF = {
    "": "a head or group of heads",
    "expert_": "an expert",
    "tensor_": "a tensor",
    "layer_": "a layer",
    "total_": "all weights",
}
VIEWS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("", ("head", "group"), ("layer", "matrix", "head")),
    ("expert_", ("expert",), ("layer", "projection", "expert")),
    ("tensor_", ("tensor",), ()),
    ("total_", ("total",), ()),
)


@only_settings
@explained
def weights(subject: Pair | Sequence, *, spectra: bool | None = None, k: int = TOP) -> "xr.Dataset":
    """How far the weights moved. The files are streamed: no model is built, no tokenizer is read.

    Args: spectra: True: of every matrix and expert; False: none; None: of matrices of up to
        512 × 512 values. k: the number of singular directions that are compared.
    Returns, of a pair, ΔW = W_post - W_pre: `norm` ‖ΔW‖_F, `norm_pre` ‖W_pre‖_F, `relative` their
        ratio (0 where both are 0, inf where only W_pre is), `largest` max |ΔW|, `changed` the share
        of values that differ, each
        - per (layer, matrix, head): W_Q, W_K, W_V, W_O; of W_K and W_V a head is a group of heads
          and NaN stands after the last; only if the stored names and shapes tell where heads are;
        - `expert_…` per (layer, projection, expert), of mixtures;
        - `tensor_…` per tensor as stored (with coordinates `tensor_layer`, `tensor_matrix`; what is
          fused in one is there too, as name[W_Q]), and of matrices the spectra:
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
    Examples:
        >>> relative = weights(pair).relative.sel(layer=1, matrix="W_O")
        >>> relative.values.round(6).tolist()  # -W in place of W is a change of twice its size
        [0.0, 0.0, 2.0, 0.0]
    """
    found = _collect(_checkpoints(subject), spectra, k)
    of_pair = isinstance(subject, Pair)
    dataset = _dataset(found, of_pair).assign_attrs(notes="; ".join(found.notes))
    named = {
        prefix + name: (units, f"{text} of {of}")
        for prefix, of in OF.items()
        for name, (units, text) in DESCRIPTIONS.items()
    }
    return described(dataset, "Roy & Vetterli 2007 (effective rank)", **named)


def table(pair: Pair, *, spectra: bool | None = None, k: int = TOP) -> "tuple[pd.DataFrame, str]":
    """The numbers of `weights(pair)` as one tidy table, and what is to be said about the pair.

    Columns: tensor, layer, matrix, kind (tensor, head, group, expert), unit, rows, columns, those
    of `weights`, and the spectra. A tensor's row comes before those of its parts.
    """
    found = _collect(_checkpoints(pair), spectra, k)
    wanted = [*KEYS, "rows", "columns", *NUMBERS, *(c for c in SPECTRA if c in found.frame)]
    frame: Any = found.frame[wanted]
    return frame, "; ".join(found.notes)


@dataclass
class _Found:
    frame: "pd.DataFrame"  # a row per (tensor or part, checkpoint)
    layers: dict[int, np.ndarray]  # inner products of the steps [s, t]; None: of all tensors
    total: np.ndarray
    notes: list[str]


def _checkpoints(subject: Pair | Sequence) -> "list[Stored]":
    from mechforget.checkpoints.stored import stored

    if isinstance(subject, Pair):
        return [stored(subject.pre), stored(subject.post)]
    check_subject("weights", subject)
    return [stored(one) for one in subject.checkpoints]


def lacks_for_streaming(subject: Pair | Sequence) -> str:
    """Why these checkpoints' files can't be compared, in a line; nothing if they can."""
    from mechforget.checkpoints.stored import alike

    try:
        alike(_checkpoints(subject))
    except CheckpointError as error:
        return str(error)
    return ""


def _collect(all_of: "list[Stored]", spectra: bool | None, k: int) -> _Found:
    import pandas as pd

    from mechforget.checkpoints.stream import sums

    if k < 1:
        raise MeasureError(f"weights(k={k}): want at least one singular direction")
    rows: list[dict[str, Any]] = []
    layers: dict[int, Any] = {}
    totals: list[tuple[dict[str, Any], np.ndarray]] = []

    def add(keys: tuple[Any, ...], shape: Any, numbers: dict[str, Any], gram: np.ndarray) -> None:
        walked = trajectory(gram)
        for t in range(len(gram)):
            row = dict(zip(KEYS, keys, strict=True)) | {"checkpoint": t + 1}
            row |= dict(zip(("rows", "columns"), shape, strict=True))
            row |= {name: values[t] for name, values in numbers.items()}
            row |= {name: walked[name] for name in ("path", "displacement")}
            rows.append(row | {name: walked[name][t] for name in ("step", "cosine")})

    for one in sums(all_of, "weights"):
        for keys, shape, cells in _rows_of(one):
            numbers = _finish(_raw(one, cells)) | _spectra(all_of, one, keys, cells, spectra, k)
            add(keys, shape, numbers, one.steps[:, :, cells].sum(-1))
        gram = one.steps.sum(-1)
        if (layer := one.layout.layer) is not None:
            layers[layer] = layers.get(layer, 0) + gram
        here = _raw(one, slice(None)), gram
        totals = [(_add(totals[0][0], here[0]), totals[0][1] + gram)] if totals else [here]
    add(("", None, "", "total", None), (None, None), _finish(totals[0][0]), totals[0][1])
    frame = pd.DataFrame(rows).astype({name: "Int64" for name in WHOLE})
    return _Found(frame, layers, totals[0][1], _notes(all_of))


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
    found = {name: np.full(T, np.nan) for name in (*SPECTRA, *STEPS)}
    if T == 1:
        found = {name: found[name] for name in SPECTRA}
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


def _dataset(found: _Found, of_pair: bool) -> "xr.Dataset":
    import xarray as xr

    frame = found.frame
    spectra = [c for c in (*SPECTRA, *STEPS) if c in frame.columns]
    parts: list[Any] = []
    for prefix, kinds, dims in VIEWS:
        some: Any = frame[frame["kind"].isin(kinds)]
        if some.empty:
            continue
        some = some.astype({"unit": float, "layer": float})
        if prefix == "tensor_":  # of what is fused in one, its name and the matrix
            inside = some.duplicated(["tensor", "checkpoint"])
            some["tensor"] += ("[" + some["matrix"] + "]").where(inside, "")
        else:
            some = some.astype({"unit": int, "layer": int} if dims else {})
        names: Any = dict(zip(("layer", "matrix", "unit"), dims, strict=False))
        some = some.rename(columns=names)
        index = [*(dims or ()), "checkpoint"] if prefix != "tensor_" else ["tensor", "checkpoint"]
        wanted = [*NUMBERS, *WALK, *(spectra if prefix in ("expert_", "tensor_") else ())]
        here = some.set_index(index)[wanted].to_xarray()
        for dim in set(index) & {"matrix", "projection", "tensor"}:
            order = list(dict.fromkeys(some[dim]))
            order.sort(key=lambda m: MATRICES.index(m) if m in MATRICES else len(MATRICES))
            here = here.reindex({dim: order})
        for name in ("path", "displacement"):
            here[name] = here[name].isel(checkpoint=-1, drop=True)
        if prefix == "tensor_":
            last = some[some["checkpoint"] == 1].set_index("tensor").loc[here.tensor.values]
            here = here.assign_coords(
                {f"tensor_{c}": ("tensor", last[c].to_numpy()) for c in ("layer", "matrix")}
            )
        parts.append(here.rename({name: prefix + name for name in here.data_vars}))
    if of_pair:
        merged: Any = xr.merge(parts, join="outer", compat="no_conflicts")
        walked = [n for n in merged.data_vars if str(n).rpartition("_")[2] in WALK]
        return merged.drop_vars(walked).isel(checkpoint=0, drop=True)
    merged = xr.merge([*parts, _walks(found)], join="outer", compat="no_conflicts")
    return merged.transpose("checkpoint", ..., "point", "component")


def _walks(found: _Found) -> "xr.Dataset":
    """The trajectory of each layer and of the whole, with their principal components."""
    import xarray as xr

    layers = sorted(found.layers)
    dims = {"step": ["checkpoint"], "cosine": ["checkpoint"], "explained": ["component"]}
    dims["coordinate"] = ["point", "component"]
    walked = [trajectory(found.layers[layer]) for layer in layers]
    variables: dict[str, Any] = {}
    if layers:
        for name in walked[0]:
            stacked = np.stack([w[name] for w in walked])
            variables[f"layer_{name}"] = (["layer", *dims.get(name, [])], stacked)
    whole = trajectory(found.total)
    variables |= {f"total_{n}": (dims[n], whole[n]) for n in ("coordinate", "explained")}
    T = len(found.total)
    coords = {"checkpoint": range(1, T + 1), "point": range(T + 1), "component": range(T)}
    return xr.Dataset(variables, coords | ({"layer": layers} if layers else {}))
