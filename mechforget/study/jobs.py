"""What a study runs, in order, and what each part costs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechforget import measures
from mechforget.errors import StudyError
from mechforget.measures import Inputs
from mechforget.measures.attention_change import HALF, SEQUENCES, readable
from mechforget.measures.grafting import MATRICES
from mechforget.measures.sets import DRAWS, SIZES
from mechforget.models.beside import elsewhere, reads_weights
from mechforget.models.sites import MATRICES as MATRIX_SITES
from mechforget.study.settings import DEFAULT, SITES, Study
from mechforget.sweeps.plan import Plan, graft, single

if TYPE_CHECKING:
    import xarray as xr

CONTROL_SITES = ("z", "head_out")


@dataclass(frozen=True)
class Job:
    """One result: its name in the store, how to get it, how many blocks each row runs through."""

    name: str
    run: "Callable[[Callable[[str], xr.Dataset]], xr.Dataset]"  # given access to earlier results
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
    why = f"a {spec.family} model does not show it"
    if elsewhere(pair.post):
        why = "a served model's weights stay on the server"
    notes = [f"{x} left out: {why}" for x in (*measures, *sites)]
    every = spec.layers * spec.heads
    if "grafting" in kept["measures"] and not spec.resident:
        where = "on a server" if elsewhere(pair.post) else "on the disk"
        notes.append(f"MLPs and the rest are not grafted: weights {where} are not lent")
    if "grafting" in kept["measures"] and study.graft_top < every:
        notes.append(
            f"W_Q, W_K, W_V and W_O are grafted one by one for {study.graft_top} of {every} heads: "
            "those whose whole graft does most (--graft-top for more)"
        )
    return study.model_copy(update=kept), notes


def jobs(study: Study, pair: Inputs, new: Inputs | None, controls: dict[str, Inputs]) -> list[Job]:
    """Cheap ones first; what builds on another comes after it."""
    spec = pair.post.spec
    base = 2 * spec.layers
    found = [Job("forgetting", lambda get: measures.forgetting(pair), base)]
    if new is not None:
        inputs = new
        found.append(Job("forgetting_new", lambda get: measures.forgetting(inputs), base))
    if "attention_change" in study.measures:
        found.append(Job("attention_change", lambda get: measures.attention_change(pair), base))
        sequences = base * SEQUENCES * 2 * HALF / pair.encoded.ids.size  # they are not the task's
        roles = Job(
            "attention_roles",
            lambda get: measures.attention_roles(pair, seed=study.seed),
            sequences,
        )
        found.append(roles)
    if "logit_attribution" in study.measures:
        found.append(Job("logit_attribution", lambda get: measures.logit_attribution(pair), base))
    if "patching" in study.measures:
        found += [_patching(pair, site, "") for site in study.sites]
        for name, control in controls.items():
            sites = [s for s in CONTROL_SITES if s in study.sites]
            found += [_patching(control, site, f"control_{name}/") for site in sites]
    if "grafting" in study.measures:
        every = [(layer, h) for layer in range(spec.layers) for h in range(spec.heads)]
        blocks = Plan.of([graft(spec, *at, "all") for at in every]).layer_runs(spec.layers)
        found.append(Job("grafting/all", lambda get: measures.grafting(pair), 2 * blocks))
        modules = Job(
            "grafting/modules",
            lambda get: measures.grafting_modules(pair),
            (2 * spec.layers + 4) * spec.layers,
        )
        if spec.resident:
            found.append(modules)
        if study.graft_top:
            few = min(study.graft_top, len(every))
            found.append(
                Job(
                    "grafting/matrices",
                    lambda get: measures.grafting(
                        pair, matrices=tuple(MATRICES)[:4], heads=_top(get("grafting/all"), few)
                    ),
                    2 * 4 * few * spec.layers / 2,
                )
            )
    if "sets" in study.measures:
        runs = len(SIZES) * (1 + DRAWS) * spec.layers * 0.8
        found.append(Job("sets", lambda get: _sets(study, pair, get), runs))
    if "clean_corrupt" in study.measures:
        blocks = Plan.of(single(spec, "z")).layer_runs(spec.layers)
        found.append(Job("clean_corrupt", lambda get: measures.clean_corrupt(pair), 4 * blocks))
    if "patching_positions" in study.measures:
        length = pair.encoded.ids.shape[1]
        blocks = length * Plan.of(single(spec, "resid_pre")).layer_runs(spec.layers)
        found.append(
            Job(
                "patching_positions",
                lambda get: measures.patching(pair, site="resid_pre", positions=range(length)),
                2 * blocks,
            )
        )
    return found


def _patching(inputs: Inputs, site: str, prefix: str) -> Job:
    spec = inputs.post.spec
    blocks = Plan.of(single(spec, site)).layer_runs(spec.layers)
    return Job(
        f"{prefix}patching/{site}", lambda get: measures.patching(inputs, site=site), 2 * blocks
    )


def _sets(study: Study, pair: Inputs, get: "Callable[[str], xr.Dataset]") -> "xr.Dataset":
    effect = get("patching/head_out").effect.sel(metric="log_prob", direction="restore")
    return measures.top_sets(pair, effect=effect, seed=study.seed)


def _top(grafting: "xr.Dataset", n: int) -> list[tuple[int, int]]:
    """The heads whose whole graft does most, either way."""
    effect = abs(grafting.effect.sel(metric="log_prob", matrix="all").mean("prompt")).max(
        "direction"
    )
    order = effect.values.ravel().argsort()[::-1][:n]
    return [divmod(int(i), effect.sizes["head"]) for i in order]
