"""What a run says before it is finished: a first answer, a first map of the heads, and the verdict,
each as soon as the results that it reads are there."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from mechforget.study.catalogue import early
from mechforget.study.store import Store
from mechforget.study.tables.forgetting import forgetting, forgotten
from mechforget.study.verdict import number, verdict

if TYPE_CHECKING:
    import xarray as xr

EXACT = "patching/head_out"
SHOWN = 3  # heads of the first map


def so_far(made: str, store: Store, waiting: Collection[str]) -> str:
    """What can be said now that the result `made` is there and those `waiting` are not, or an empty
    string. Nothing is said about a head if nothing was forgotten."""
    soon = early()
    if made not in soon or not waiting:  # if nothing is left to do, the run's own end says all
        return ""
    if made == "forgetting":
        return f"first answer: {verdict(store).sentence}"
    if not forgotten(forgetting(store), "log_prob"):
        return ""
    if made == "attribution/head_out":
        return "" if store.has(EXACT) else _first_map(store, confirmed=EXACT in waiting)
    if soon.intersection(waiting):
        return ""
    return f"verdict, before the other measures are made: {verdict(store).sentence}"


def _first_map(store: Store, *, confirmed: bool) -> str:
    effect = store.get("attribution/head_out").effect.sel(metric="log_prob").mean("prompt")
    restore, broken = (_largest(effect.sel(direction=d)) for d in ("restore", "break"))
    return (
        f"first map, estimated from gradients: restoring one head gives back most in {restore}; "
        f"breaking one costs most in {broken}" + "; exact patching follows" * confirmed
    )


def _largest(effect: "xr.DataArray") -> str:
    """The heads with the largest effects, in nats."""
    effect = effect.transpose("layer", "head")
    order = effect.values.ravel().argsort()[::-1][:SHOWN]
    at = [divmod(int(i), effect.sizes["head"]) for i in order]
    return ", ".join(f"L{a}H{b} ({number(float(effect[a, b]))} nats)" for a, b in at)
