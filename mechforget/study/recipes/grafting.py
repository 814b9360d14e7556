"""Grafts: of every head's weights, of its single matrices, of whole layers and of experts."""

from typing import TYPE_CHECKING

from mechforget import measures
from mechforget.models.beside import reads_weights
from mechforget.models.sites import MATRICES, PARAMETER
from mechforget.study.job import BOTH, Job, Rehearsal, Scope, Work
from mechforget.study.scene import Scene
from mechforget.sweeps.plan import Variant, graft, single

if TYPE_CHECKING:
    import xarray as xr


def jobs(scope: Scope) -> list[Job]:
    study, spec = scope.study, scope.spec
    every = [(layer, head) for layer in range(spec.layers) for head in range(spec.heads)]

    def grafts(chosen: list[tuple[int, int]], matrices: tuple[str, ...]) -> tuple[Variant, ...]:
        found = (graft(spec, *at, matrix) for matrix in matrices for at in chosen)
        return tuple(dict.fromkeys(found))  # heads of a group share their k and v

    found = [Job("grafting/all", _heads, 2, grafts(every, ("all",)), where=BOTH)]
    if spec.resident:
        found.append(
            Job(
                "grafting/modules",
                lambda work: measures.grafting_modules(work.pair),
                2 * (2 * spec.layers + 2),
                where=BOTH,
                held=True,
                rehearse=_lend_modules,
            )
        )
    if "expert_out" in study.sites and study.backend != "remote":
        experts = tuple(single(spec, "W_expert"))
        found.append(Job("grafting/experts", _experts, 2, experts, where=BOTH))
    n = min(study.graft_top, len(every))  # which heads isn't known yet: spread over all layers
    if few := [every[i * len(every) // n] for i in range(n)]:
        found.append(
            Job(
                "grafting/matrices",
                _matrices,
                2,
                grafts(few, MATRICES),
                where=BOTH,
                after=("grafting/all",),
            )
        )
    return found


def _heads(work: Work) -> "xr.Dataset":
    return measures.grafting(work.pair)


def _experts(work: Work) -> "xr.Dataset":
    return measures.grafting_experts(work.pair)


def _matrices(work: Work) -> "xr.Dataset":
    heads = _top(work.get("grafting/all"), work.study.graft_top)
    return measures.grafting(work.pair, matrices=tuple(PARAMETER), heads=heads)


def _top(grafting: "xr.Dataset", n: int) -> list[tuple[int, int]]:
    """The heads whose whole graft does most, either way."""
    effect = abs(grafting.effect.sel(metric="log_prob", matrix="all").mean("prompt")).max(
        "direction"
    )
    order = effect.values.ravel().argsort()[::-1][:n]
    return [divmod(int(i), effect.sizes["head"]) for i in order]


def _lend_modules(rehearsal: Rehearsal) -> None:
    from mechforget.sweeps.donor import Donor
    from mechforget.sweeps.run import sweep
    from mechforget.sweeps.weights import borrowed

    model, few = rehearsal.model, rehearsal.encoded
    with borrowed(model, model, [("attention", None), ("mlp", None), ("rest", None)]):
        sweep(model, few, Donor(model, {}), [])


def lacks(scene: Scene) -> str:
    pre, post = scene.pair.pre, scene.pair.post
    if why := scene.unseen(*MATRICES):
        return why
    if not (reads_weights(post, pre) and reads_weights(pre, post)):
        return "a served model's weights stay on the server"
    return ""


def notes(scope: Scope) -> list[str]:
    study, spec = scope.study, scope.spec
    found, served, every = [], study.backend == "remote", spec.layers * spec.heads
    if not spec.resident:
        where = "on a server" if served else "on the disk"
        parts = "MLPs, experts," if served and "expert_out" in study.sites else "MLPs,"
        found.append(
            f"{parts} whole layers and the rest are not grafted: weights {where} are not lent"
        )
    if study.graft_top == 0:
        found.append("W_Q, W_K, W_V and W_O are not grafted one by one (--graft-top 0)")
    elif study.graft_top < every:
        found.append(
            f"W_Q, W_K, W_V and W_O are grafted one by one for {study.graft_top} of {every} heads: "
            "those whose whole graft does most (--graft-top for more)"
        )
    return found
