"""Integrated gradients over the weights (the forgetting ledger), and its origins: the same of what
the most expressed head writes."""

from typing import TYPE_CHECKING

from mechforget import measures
from mechforget.measures.ledger import FIRST
from mechforget.study.job import BOTH, Job, Rehearsal, Scope, Work
from mechforget.study.scene import BOTH as IN_ONE_PLACE
from mechforget.study.scene import IN_MEMORY, Scene

if TYPE_CHECKING:
    import xarray as xr

PASSES = 4 * (FIRST + 2 * FIRST)


def jobs(scope: Scope) -> list[Job]:
    found = [
        Job(
            "ledger",
            _ledger,
            PASSES,
            where=BOTH,
            held=True,
            across=False,
            by_cell=True,
            rehearse=_shares,
        )
    ]
    if "patching" in scope.study.measures and "head_out" in scope.study.sites:
        after = ("patching/head_out",)
        found.append(
            Job("origins", _origins, PASSES, where=BOTH, held=True, across=False, after=after)
        )
    return found


def _ledger(work: Work) -> "xr.Dataset":
    return measures.ledger(work.pair)


def _origins(work: Work) -> "xr.Dataset":
    """Of the head that restores most."""
    effect = work.get("patching/head_out").effect.sel(metric="log_prob", direction="restore")
    mean = effect.mean("prompt").transpose("layer", "head")
    layer, head = divmod(int(mean.fillna(-float("inf")).values.argmax()), mean.sizes["head"])
    return measures.origins(work.pair, layer=layer, head=head)


def _shares(rehearsal: Rehearsal) -> None:
    from mechforget.sweeps.shares import shares

    whole = {p: p.detach() for p in rehearsal.cells}
    shares(rehearsal.model, rehearsal.encoded, whole, rehearsal.cells)


def lacks(scene: Scene) -> str:
    if scene.served:
        return IN_ONE_PLACE
    return IN_MEMORY if not scene.spec.resident else scene.unsplit()
