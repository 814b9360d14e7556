"""What a study runs, in order, and what each part costs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mechforget import measures
from mechforget.errors import StudyError
from mechforget.measures import Inputs
from mechforget.measures.attention_change import readable
from mechforget.measures.grafting import MATRICES
from mechforget.models.beside import elsewhere, reads_weights
from mechforget.models.sites import MATRICES as MATRIX_SITES
from mechforget.study.needs import needs
from mechforget.study.settings import DEFAULT, SITES, Study

if TYPE_CHECKING:
    import xarray as xr

    Get = Callable[[str], xr.Dataset]  # earlier results, by name
    Run = Callable[[Get], xr.Dataset]


@dataclass(frozen=True)
class Job:
    """One result: its name in the store, how to get it, how many blocks each row runs through."""

    name: str
    run: "Run"
    blocks: float


def served(study: Study, pair: Inputs) -> tuple[Study, list[str]]:
    """The study without what this model can't show, and what is left out and why.

    Raises: StudyError: it was asked for by name.
    """
    spec = pair.post.spec
    lacks = {
        "attention_change": not readable(pair),
        "logit_attribution": spec.residual_scale is None,
        "grafting": not spec.sites.issuperset(MATRIX_SITES)
        or not (reads_weights(pair.post, pair.pre) and reads_weights(pair.pre, pair.post)),
        "sets": "head_out" not in spec.sites,
        "clean_corrupt": "z" not in spec.sites,
        "patching_positions": "resid_pre" not in spec.sites,
    }
    measures = [m for m in study.measures if lacks.get(m)]
    sites = [site for site in study.sites if site not in spec.sites]
    named = [m for m in measures if study.measures != DEFAULT]
    named += [site for site in sites if study.sites != SITES]
    if named:
        raise StudyError(
            f"{', '.join(named)}: not to be had of a {spec.family} model on backend "
            f"{study.backend}: leave it out"
        )
    kept = {
        "measures": tuple(m for m in study.measures if m not in measures),
        "sites": tuple(site for site in study.sites if site not in sites),
    }
    stay = elsewhere(pair.post) and spec.sites.issuperset(MATRIX_SITES)
    notes = [
        f"{x} left out: "
        + (
            "a served model's weights stay on the server"
            if stay and x == "grafting"
            else f"a {spec.family} model does not show it"
        )
        for x in (*measures, *sites)
    ]
    every = spec.layers * spec.heads
    if "grafting" in kept["measures"] and not spec.resident:
        where = "on a server" if elsewhere(pair.post) else "on the disk"
        notes.append(f"MLPs and the rest are not grafted: weights {where} are not lent")
    if "grafting" in kept["measures"] and study.graft_top == 0:
        notes.append("W_Q, W_K, W_V and W_O are not grafted one by one (--graft-top 0)")
    elif "grafting" in kept["measures"] and study.graft_top < every:
        notes.append(
            f"W_Q, W_K, W_V and W_O are grafted one by one for {study.graft_top} of {every} heads: "
            "those whose whole graft does most (--graft-top for more)"
        )
    return study.model_copy(update=kept), notes


def jobs(study: Study, pair: Inputs, new: Inputs | None, controls: dict[str, Inputs]) -> list[Job]:
    """How to get what the study needs, of this pair; in the order of `needs`."""
    spec = pair.post.spec
    length = pair.encoded.ids.shape[1]
    runs: dict[str, Run] = {
        "forgetting": lambda get: measures.forgetting(pair),
        "attention_change": lambda get: measures.attention_change(pair),
        "attention_roles": lambda get: measures.attention_roles(pair, seed=study.seed),
        "logit_attribution": lambda get: measures.logit_attribution(pair),
        "grafting/all": lambda get: measures.grafting(pair),
        "grafting/matrices": lambda get: measures.grafting(
            pair, matrices=tuple(MATRICES)[:4], heads=_top(get("grafting/all"), study.graft_top)
        ),
        "sets": lambda get: _sets(study, pair, get),
        "clean_corrupt": lambda get: measures.clean_corrupt(pair),
        "patching_positions": lambda get: measures.patching(
            pair, site="resid_pre", positions=range(length)
        ),
    }
    if new is not None:
        runs["forgetting_new"] = lambda get: measures.forgetting(new)
    if spec.resident:
        runs["grafting/modules"] = lambda get: measures.grafting_modules(pair)
    for prefix, inputs in ("", pair), *((f"control_{name}/", x) for name, x in controls.items()):
        for site in study.sites:
            runs[f"{prefix}patching/{site}"] = partial(_patching, inputs, site)
    todo = needs(study, spec, *pair.encoded.ids.shape)
    return [
        Job(need.name, runs[need.name], need.blocks(spec.layers))
        for need in todo
        if need.name in runs  # a checkpoint between has no controls
    ]


def _patching(inputs: Inputs, site: str, get: "Get") -> "xr.Dataset":
    return measures.patching(inputs, site=site)


def _sets(study: Study, pair: Inputs, get: "Get") -> "xr.Dataset":
    effect = get("patching/head_out").effect.sel(metric="log_prob", direction="restore")
    return measures.top_sets(pair, effect=effect, seed=study.seed)


def _top(grafting: "xr.Dataset", n: int) -> list[tuple[int, int]]:
    """The heads whose whole graft does most, either way."""
    effect = abs(grafting.effect.sel(metric="log_prob", matrix="all").mean("prompt")).max(
        "direction"
    )
    order = effect.values.ravel().argsort()[::-1][:n]
    return [divmod(int(i), effect.sizes["head"]) for i in order]
