"""Compares checkpoints tensor by tensor, a few rows at a time; only sums are kept, no models.

Files are memory-mapped, and some rows at a time are converted to float32 in buffers that are used
again, so little memory is needed whatever the model's size. Squares are summed in float32 over at
most 256 values, and in float64 from there on. Rows that are equal byte by byte differ by exactly 0;
their differences are not computed.
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechforget import progress
from mechforget.checkpoints.layout import Layout, layout
from mechforget.checkpoints.stored import FLOATS, Stored, alike
from mechforget.errors import CheckpointError

STRETCH = 1 << 19  # values at a time: large enough to hide the calls, and small beside any memory
SEGMENT = 256  # values summed in float32


@dataclass(frozen=True)
class Sums:
    """Sums of one tensor, for each cell c of its layout, where d_t = W_t - W_0 and
    u_t = W_t - W_(t-1), t = 1 … T."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    size: np.ndarray  # [c] number of values
    pre: np.ndarray  # [c] Σ W_0²
    moved: np.ndarray  # [t, c] Σ d_t²
    largest: np.ndarray  # [t, c] max |d_t|
    changed: np.ndarray  # [t, c] number of values of d_t that aren't 0
    steps: np.ndarray  # [s, t, c] Σ u_s u_t; for a pair the same as `moved`


def sums(all_of: list[Stored], label: str = "diff") -> Iterator[Sums]:
    """The sums of each tensor in turn, on as many threads as there are cores.

    Raises: CheckpointError: names or shapes differ (found before any data is read), or a value is
        NaN or infinite.
    """
    names = alike(all_of)
    size = sum(len(one.bytes(name)) for one in all_of for name in names) / 1e9
    pool = ThreadPoolExecutor(os.cpu_count())
    with progress.bar(label, round(size, 3), "GB") as advance:
        try:
            for found in pool.map(lambda name: _Walk(all_of, name).sums(), names):
                advance(sum(len(one.bytes(found.name)) for one in all_of) / 1e9)
                yield found
        finally:
            pool.shutdown(cancel_futures=True)


def matrix(all_of: list[Stored], name: str, rows: slice, s: int, t: int | None) -> np.ndarray:
    """W_s, or W_s - W_t if t is given, as float32 [rows, columns]; only it is in memory."""
    walk = _Walk(all_of, name)
    found = np.empty((rows.stop - rows.start, walk.layout.columns), np.float32)
    step = max(1, STRETCH // walk.layout.columns)
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        to = found[start - rows.start : stop - rows.start]
        if t is None:
            to[:] = walk.whole(s, start, stop, np.dtype("f4"))
        else:
            w: list[Any] = [None] * len(all_of)
            for i in (t, s):
                same = w[t] is not None and walk.places[i] == walk.places[t]
                w[i] = w[t] if same else walk.values(i, start, stop, np.dtype("f4"))
            to[:] = walk.difference(w, s, t, start, stop, "d")
    return found


class _Walk:
    """Goes through one tensor in all checkpoints, a stretch of rows at a time."""

    def __init__(self, all_of: list[Stored], name: str) -> None:
        self.all_of, self.name = all_of, name
        info = all_of[0].tensors[name]
        self.shape = info.shape
        self.layout = layout(name, info.shape, all_of[0].heads)
        self.raw = [one.bytes(name) for one in all_of]
        self.dtypes = [one.tensors[name].dtype for one in all_of]
        self.real = np.dtype("f8" if "F64" in self.dtypes else "f4")
        self.row = [self.layout.columns * np.dtype(FLOATS[d]).itemsize for d in self.dtypes]
        self.added = [one.added.get(name) for one in all_of]
        self.places = [(*one.place(name), one.tensors[name].dtype) for one in all_of]

    def sums(self) -> Sums:
        at, cells, T = self.layout, self.layout.cells(), len(self.all_of) - 1
        across = at.rows if at.axis else at.columns
        size = np.array([(part.stop - part.start) * across for part in cells])
        found = [np.zeros((1 + 2 * T + T * T, len(cells))), np.zeros((T, len(cells)))]
        if at.rows * at.columns:
            if at.axis == 0:
                for i, part in enumerate(cells):
                    self._stretches(part.start, part.stop, 1, found, slice(i, i + 1))
            else:
                self._stretches(0, at.rows, len(cells), found, slice(None))
        table, largest = found
        return Sums(
            self.name,
            self.shape,
            at,
            size,
            table[0],
            table[1 : 1 + T],
            largest,
            table[1 + T : 1 + 2 * T],
            table[1 + 2 * T :].reshape(T, T, -1),
        )

    def _stretches(
        self, begin: int, end: int, units: int, found: list[np.ndarray], cells: slice
    ) -> None:
        step = max(1, STRETCH // self.layout.columns)
        for start in range(begin, end, step):
            stop = min(start + step, end)
            for t, one in enumerate(self.all_of):
                info = one.tensors[self.name]
                one.files[info.file].ask(info.begin + start * self.row[t])
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                got = self._stretch(start, stop, units, self.real)
            if not _in_range(got):  # squares that float32 can't hold, or NaN
                with np.errstate(invalid="ignore"):
                    got = self._stretch(start, stop, units, np.dtype("f8"))
                if not np.isfinite(got[0]).all():
                    self._refuse(start, stop)
            found[0][:, cells] += got[0]
            np.maximum(found[1][:, cells], got[1], out=found[1][:, cells])

    def _stretch(self, start: int, stop: int, units: int, real: Any) -> list[np.ndarray]:
        """The sums [W_0², d_t², changed_t, u_s u_t] and max |d_t| of these rows, for each unit."""
        T = len(self.raw) - 1
        table, largest = np.zeros((1 + 2 * T + T * T, units)), np.zeros((T, units))
        shape, axes = (stop - start, units, -1), None if units == 1 else (0, 2)
        w = [self.values(0, start, stop, real)]
        pre = self._plus(0, w[0], start, stop).reshape(shape)
        table[0] = _dot(pre, pre)
        if self._equal(start, stop):
            return [table, largest]
        for t in range(1, T + 1):
            same = self.places[t] == self.places[0]
            w.append(w[0] if same else self.values(t, start, stop, real))
        steps = []
        for t in range(1, T + 1):
            d = self.difference(w, t, 0, start, stop, "d").reshape(shape)
            table[t] = _dot(d, d)
            hit = np.not_equal(d, 0, out=_scratch("hit", d.size, np.dtype("?")).reshape(d.shape))
            table[T + t] = np.count_nonzero(hit, axis=axes)
            largest[t - 1] = np.maximum(d.max(2).max(0), -d.min(2).min(0))
            if T > 1:
                u = self.difference(w, t, t - 1, start, stop, f"u{t}")
                steps.append(u.reshape(shape))
        if T == 1:
            table[3] = table[1]
        for s in range(len(steps)):
            for t in range(s, T):
                both = _dot(steps[s], steps[t])
                table[1 + 2 * T + s * T + t] = table[1 + 2 * T + t * T + s] = both
        return [table, largest]

    def difference(
        self, w: list[np.ndarray], s: int, t: int, start: int, stop: int, slot: str
    ) -> np.ndarray:
        """W_s - W_t of these rows, from the stored parts w: what both share cancels exactly."""
        out = _scratch(slot, w[s].size, w[s].dtype).reshape(w[s].shape)
        if w[s] is w[t]:
            out[:] = 0
        else:
            np.subtract(w[s], w[t], out=out)
        if (plus := self.added[s]) is not None:
            out += plus.rows(start, stop)
        if (minus := self.added[t]) is not None:
            out -= minus.rows(start, stop)
        return out

    def whole(self, t: int, start: int, stop: int, real: Any) -> np.ndarray:
        return self._plus(t, self.values(t, start, stop, real), start, stop)

    def _plus(self, t: int, stored: np.ndarray, start: int, stop: int) -> np.ndarray:
        more = self.added[t]
        return stored if more is None else stored + more.rows(start, stop)

    def values(self, t: int, start: int, stop: int, real: Any) -> np.ndarray:
        """Stored rows as dtype `real`, or wider if stored so; may be the file's own memory."""
        dtype = np.dtype(FLOATS[self.dtypes[t]])
        n = (stop - start) * self.layout.columns
        raw = self._rows(t, start, stop).view(dtype)
        if dtype == real and self.dtypes[t] != "BF16":
            found = raw
        else:
            found = _scratch(f"w{t}", n, real)
            if self.dtypes[t] == "BF16":
                single = found if real == "f4" else np.empty(n, "f4")
                np.multiply(raw, np.uint32(1 << 16), out=single.view("u4"), dtype="u4")
                if single is not found:
                    found[:] = single
            else:
                found[:] = raw
        return found.reshape(stop - start, self.layout.columns)

    def _rows(self, t: int, start: int, stop: int) -> np.ndarray:
        return self.raw[t][start * self.row[t] : stop * self.row[t]]

    def _equal(self, start: int, stop: int) -> bool:
        """Whether these rows are equal in all checkpoints, byte by byte."""
        if any(one is not None for one in self.added):
            return False
        for t in range(1, len(self.raw)):
            if self.places[t] == self.places[0]:
                continue
            if self.dtypes[t] != self.dtypes[0]:
                return False
            a, b = (self._rows(i, start, stop) for i in (0, t))
            if (a[:SEGMENT] != b[:SEGMENT]).any() or not _same(a, b):
                return False
        return True

    def _refuse(self, start: int, stop: int) -> None:
        for t, one in enumerate(self.all_of):
            bad = int((~np.isfinite(self.whole(t, start, stop, np.dtype("f8")))).sum())
            if bad or t == len(self.all_of) - 1:
                raise CheckpointError(
                    f"{one.ref}: {self.name} holds NaN or infinite values ({bad:,} of the "
                    f"{(stop - start) * self.layout.columns:,} in rows {start} to {stop - 1}); a "
                    "model that diverged cannot be compared: take an earlier checkpoint"
                )


def _in_range(got: list[np.ndarray]) -> bool:
    table, largest = got
    low = ((largest > 0) & (largest < 1e-12)).any() or ((table[0] > 0) & (table[0] < 1e-20)).any()
    return bool(np.isfinite(table).all()) and not low


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ a b over rows and values of [rows, unit, values]: float32 over SEGMENT, then float64."""
    n = a.shape[-1] // SEGMENT * SEGMENT
    found = np.zeros(a.shape[1])
    if n:
        cut = (*a.shape[:2], -1, SEGMENT)
        found += np.vecdot(a[..., :n].reshape(cut), b[..., :n].reshape(cut)).sum((0, 2), dtype="f8")
    if n < a.shape[-1]:
        found += np.vecdot(a[..., n:], b[..., n:]).sum(0, dtype="f8")
    return found


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    n = len(a) // 8 * 8
    hit = _scratch("same", n // 8, np.dtype("?"))
    np.equal(a[:n].view("u8"), b[:n].view("u8"), out=hit)
    return bool(hit.all()) and bool((a[n:] == b[n:]).all())


_LOCAL = threading.local()


def _scratch(slot: str, n: int, dtype: Any) -> np.ndarray:
    """A buffer that this thread uses again: allocating memory costs more than the arithmetic."""
    held = _LOCAL.__dict__.setdefault("held", {})
    key = slot, dtype.str
    if key not in held or len(held[key]) < n:
        held[key] = np.empty(max(n, STRETCH), dtype)
    return held[key][:n]
