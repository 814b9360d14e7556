"""What each measure of a study runs: variants, forward passes, and what must be where.

In the order in which they are run: cheap ones first; what builds on another comes after it.
"""

from dataclasses import dataclass

from mechforget.measures.attention_change import HALF, SEQUENCES
from mechforget.measures.drift import stream
from mechforget.measures.grafting import MATRICES
from mechforget.measures.ledger import FIRST
from mechforget.measures.loss_surface import LINE
from mechforget.measures.sets import DRAWS, SIZES
from mechforget.models.protocol import Point
from mechforget.models.sites import Edit, Spec
from mechforget.study.settings import Study
from mechforget.sweeps.donor import points
from mechforget.sweeps.plan import Plan, Variant, graft, heads, single

CONTROL_SITES = ("z", "head_out")
SCREENED = ("z", "head_out")  # sites whose heads attribution patching ranks
NEUTRAL = 3000  # tokens of other text that a readout is aligned on
CURVATURE = 60 * 8  # products with a Hessian, each eight forward passes or so
# Whose weights must be in one place. `SENT`: one checkpoint's, and the other's activations.
ONE, BOTH, SENT = "one checkpoint", "both checkpoints", "sent"


@dataclass(frozen=True)
class Need:
    """One result of a study. A sweep is one growing batch over all prompts, in one direction."""

    name: str
    sweeps: float  # plain forward passes, where there are no variants
    variants: tuple[Variant, ...] = ()  # of one sweep
    captures: int = 0  # forward passes that only read activations, before each sweep
    also: tuple[Point, ...] = ()  # what is read besides the variants' own points
    where: str = ONE
    held: bool = False  # weights must be in memory: they have gradients, or are moved or lent

    @property
    def points(self) -> list[Point]:
        return [*points(self.variants), *self.also]

    def blocks(self, layers: int) -> float:
        """Executed per row of the task, captures left out: what the time of a job goes with."""
        return self.sweeps * Plan.of(self.variants).layer_runs(layers)


def needs(study: Study, spec: Spec, rows: int, tokens: int) -> list[Need]:
    """rows, tokens: of the task; the sequences of attention roles and positions are not its own."""
    layers, heads_each = range(spec.layers), range(spec.heads)
    found = [Need(name, 2) for name in ("forgetting", *["forgetting_new"] * bool(study.new_task))]
    patterns = tuple((layer, "pattern") for layer in layers)
    if "attention_change" in study.measures:
        found.append(Need("attention_change", 2, also=patterns))
        found.append(Need("attention_roles", 2 * SEQUENCES * 2 * HALF / (rows * tokens)))
    if "logit_attribution" in study.measures:
        found.append(Need("logit_attribution", 2))
    found += _mechanisms(study, spec)
    if "patching" in study.measures:
        for site in study.sites:
            variants = single(spec, site)
            if study.screen is not None and site in SCREENED:  # spread: which ones isn't known
                n = min(study.screen, len(variants))
                variants = [variants[i * len(variants) // n] for i in range(n)]
            found.append(_patched(f"patching/{site}", tuple(variants)))
        controls = {"twin": study.control_twin, "old": study.control_old}
        for name in (name for name, given in controls.items() if given):
            for site in (s for s in CONTROL_SITES if s in study.sites):
                variants = tuple(single(spec, site))
                found.append(_patched(f"control_{name}/patching/{site}", variants))
    if "grafting" in study.measures:
        every = [(layer, head) for layer in layers for head in heads_each]
        found.append(_grafted(spec, "grafting/all", every, ("all",)))
        if spec.resident:
            passes = 2 * (2 * spec.layers + 2)
            found.append(Need("grafting/modules", passes, where=BOTH, held=True))
        if "expert_out" in study.sites and study.backend != "remote":
            experts = tuple(single(spec, "W_expert"))
            found.append(Need("grafting/experts", 2, experts, where=BOTH))
        n = min(study.graft_top, len(every))  # which ones isn't known: spread over all layers
        if few := [every[i * len(every) // n] for i in range(n)]:
            found.append(_grafted(spec, "grafting/matrices", few, tuple(MATRICES.values())[:4]))
    if {"ledger", "patching"} <= set(study.measures) and "head_out" in study.sites:
        found.append(Need("origins", 4 * (FIRST + 2 * FIRST), where=BOTH, held=True))
    if "sets" in study.measures:
        # Heads of the first layers stand for those that will be chosen: the dearest there could be.
        total = spec.layers * spec.heads
        sizes = [k for k in SIZES if k <= total // 2]
        chosen = [
            heads("head_out", [divmod((i + draw) % total, spec.heads) for i in range(k)])
            for k in sizes
            for draw in range(1 + DRAWS)
        ]
        found.append(_patched("sets", tuple(chosen), sweeps=1))
    if "clean_corrupt" in study.measures:
        found.append(_patched("clean_corrupt", tuple(single(spec, "z")), sweeps=4))
    if "patching_positions" in study.measures:
        variants = tuple(single(spec, "resid_pre", range(tokens)))
        found.append(_patched("patching_positions", variants))
    return found


def _mechanisms(study: Study, spec: Spec) -> list[Need]:
    """What isn't a sweep. A backward pass counts as two forward ones."""
    depths = tuple(stream(spec))
    found = []
    if "attribution" in study.measures:
        sites = [s for s in SCREENED if s in study.sites] or ["head_out"]
        # of each direction: two captures, and for two metrics a pass forward and back
        for site in sites:
            also = tuple(points(single(spec, site)))
            found.append(Need(f"attribution/{site}", 16, also=also, where=SENT, held=True))
    if "weights" in study.measures:
        found.append(Need("weights", 2, where=BOTH))  # reads them once, as a forward pass does
    if "drift" in study.measures:
        z = ((layer, "z") for layer in range(spec.layers))
        found.append(Need("drift", 2, also=(*depths, *z)))
        if study.control_twin:
            found.append(Need("control_twin/drift", 2))
    if "readout" in study.measures:
        found.append(Need("readout", 2 + 2 * NEUTRAL / 400, also=depths))
    if "similarity" in study.measures:
        found.append(Need("similarity", 2, also=depths))
    if "routing" in study.measures and spec.moe:
        gates = tuple((layer, "gate") for layer in spec.moe)
        found.append(Need("routing", 2, also=gates))
        routers = (*single(spec, "router"), tuple(Edit(at, "router") for at in spec.moe))
        found.append(_patched("routing_restored", routers))
    if "interference" in study.measures:
        # Two tasks, and the products of their gradients: of pre, post and, in one place, halfway.
        n, where = (3, BOTH) if spec.resident else (2, ONE)
        found.append(Need("interference", 6 * n, where=where, held=True))
    if "ledger" in study.measures:
        found.append(Need("ledger", 4 * (FIRST + 2 * FIRST), where=BOTH, held=True))
    if "landscape" in study.measures:
        lines = ("landscape/line", *["landscape/line_new"] * bool(study.new_task))
        found += [Need(name, len(LINE), where=BOTH, held=True) for name in lines]
        # a step for every weight costs as much as two passes
        found.append(Need("landscape/sharpness", 2 * 21 * 3, held=True))
        found.append(Need("landscape/curvature", 2 * CURVATURE, held=True))
    return found


def _patched(name: str, variants: tuple[Variant, ...], sweeps: int = 2) -> Need:
    """Captured: the donor's activations, and the recipient's own, to leave out idle variants."""
    return Need(name, sweeps, variants, captures=2 if sweeps == 1 else 1, where=SENT)


def _grafted(
    spec: Spec, name: str, chosen: list[tuple[int, int]], matrices: tuple[str, ...]
) -> Need:
    found = dict.fromkeys(graft(spec, *at, matrix) for matrix in matrices for at in chosen)
    return Need(name, 2, tuple(found), captures=0, where=BOTH)
