"""Patching: of every site, of controls, of sets of heads, by position, within a checkpoint."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mechforget import measures
from mechforget.measures.attribution import screened
from mechforget.measures.sets import DRAWS, SIZES
from mechforget.study.job import Job, Scope, Work, swept
from mechforget.study.recipes.attribution import SCREENED
from mechforget.study.scene import Scene
from mechforget.sweeps.plan import heads, single

if TYPE_CHECKING:
    import xarray as xr

CONTROL_SITES = ("z", "head_out")


def patching(scope: Scope) -> list[Job]:
    study, spec = scope.study, scope.spec
    found = []
    for site in study.sites:
        variants, after = single(spec, site), ()
        screen = study.screen if site in SCREENED else None
        if screen is not None:  # which heads isn't known yet: spread over all layers
            n = min(screen, len(variants))
            variants = [variants[i * len(variants) // n] for i in range(n)]
            after = (f"attribution/{site}",)
        run = _patched(site, screen)
        found.append(swept(f"patching/{site}", run, tuple(variants), after=after))
    for name, given in (("twin", study.control_twin), ("old", study.control_old)):
        for site in (s for s in CONTROL_SITES if given and s in study.sites):
            variants = tuple(single(spec, site))
            run = _controlled(site, name)
            found.append(swept(f"control_{name}/patching/{site}", run, variants, once=True))
    return found


def _patched(site: str, screen: int | None) -> "Callable[[Work], xr.Dataset]":
    def run(work: Work) -> "xr.Dataset":
        some = None if screen is None else screened(work.get(f"attribution/{site}"), screen)
        return measures.patching(work.pair, site=site, heads=some)

    return run


def _controlled(site: str, control: str) -> "Callable[[Work], xr.Dataset]":
    return lambda work: measures.patching(work.controls[control], site=site)


def sets(scope: Scope) -> list[Job]:
    # Heads of the first layers stand for those that will be chosen: they cost the most.
    spec = scope.spec
    total = spec.layers * spec.heads
    sizes = [k for k in SIZES if k <= total // 2]
    variants = [
        heads("head_out", [divmod((i + draw) % total, spec.heads) for i in range(k)])
        for k in sizes
        for draw in range(1 + DRAWS)
    ]
    after = ("patching/head_out",)
    return [swept("sets", _sets, tuple(variants), sweeps=1, after=after)]


def _sets(work: Work) -> "xr.Dataset":
    effect = work.get("patching/head_out").effect.sel(metric="log_prob", direction="restore")
    return measures.top_sets(work.pair, effect=effect, seed=work.study.seed)


def lacks_for_sets(scene: Scene) -> str:
    few = len(set(scene.pair.encoded.cluster.tolist())) < 2
    return "needs two distinct prompts" if few else scene.unseen("head_out")


def clean_corrupt(scope: Scope) -> list[Job]:
    variants = tuple(single(scope.spec, "z"))
    return [swept("clean_corrupt", lambda w: measures.clean_corrupt(w.pair), variants, sweeps=4)]


def lacks_for_clean_corrupt(scene: Scene) -> str:
    return scene.uncorrupted or scene.unseen("z")


def positions(scope: Scope) -> list[Job]:
    variants = tuple(single(scope.spec, "resid_pre", range(scope.tokens)))
    return [swept("patching_positions", _positions, variants)]


def _positions(work: Work) -> "xr.Dataset":
    length = work.pair.encoded.ids.shape[1]
    return measures.patching(work.pair, site="resid_pre", positions=range(length))


def lacks_for_positions(scene: Scene) -> str:
    return scene.unseen("resid_pre")
