"""The growing batch: all variants of all layers in one forward pass.

1. The base rows (the prompts, unchanged) enter the first layer.
2. Before layer l, each variant whose first edit is in l gets a copy of the base rows, appended to
   the batch. Below that layer a variant equals the base, so nothing is computed twice.
3. Within a layer, the donor's values are written into the variants' rows, in place: `attention`,
   `experts` and `residual` say how. Every weight is read once for the whole sweep.
4. At the end, only the positions that are read are unembedded.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.models.beside import beside_the_model, is_served
from mechforget.models.protocol import Model, Point, Rewrite
from mechforget.models.sites import MATRICES, Edit
from mechforget.sweeps.attention import Heads, Projection
from mechforget.sweeps.donor import AdapterDonor, Donor, FileDonor, RemoteDonor, ValueDonor, forward
from mechforget.sweeps.experts import Experts
from mechforget.sweeps.metric import Metric
from mechforget.sweeps.plan import Plan, Variant
from mechforget.sweeps.residual import Residual
from mechforget.sweeps.slots import LayerEdits, Slots

if TYPE_CHECKING:
    from torch import Tensor

    from mechforget.tasks.encoded import Encoded

REQUEST = 200e6  # bytes of a donor's values in one request; servers refuse much larger ones
ORDER = (  # the points of a layer, in the order in which it computes them
    *("resid_pre", "q_in", "q", "q_norm_in", "q_norm", "k_in", "k", "k_norm_in", "k_norm"),
    *("v_in", "v", "pattern", "z", "attn_raw", "attn_out"),
    *("experts_in", "router", "experts", "mlp_out", "resid_post"),
)


def sweep(
    model: Model,
    encoded: "Encoded",
    donor: Donor | RemoteDonor | ValueDonor,
    variants: Sequence[Variant],
    *,
    own: Donor | RemoteDonor | None = None,
    max_tokens: int = 1 << 30,
    metric: Metric | None = None,
) -> tuple[np.ndarray, ...]:
    """Runs every variant of every prompt, exactly. A served model runs them in one request, or in
    several where a donor's values have to be sent and are large.

    Args: encoded: the prompts. donor: its rows are aligned with those of `encoded`. own: the
        model's own activations at the same points, if they are known already. max_tokens: the
        largest number of rows times positions in one forward pass; variants that don't fit run in
        another. metric: a metric of one's own, of models that run here.
    Returns: log p of each read's target, nats, and whether the target is the argmax, both
        [1 + variant, read]; index 0 is the base. A variant whose new values all equal the model's
        own, bit for bit, isn't run: its result is the base's. With a metric of one's own
        there is a third array, [1 + variant, prompt].
    """
    if is_served(model):
        own = None  # the server computes them
        sent = donor.for_recipient(model) if isinstance(donor, RemoteDonor) else donor
        if isinstance(sent, ValueDonor):
            found = [
                _sweep(model, encoded, part, some, own, max_tokens)
                for part, some in sent.split(variants, REQUEST)
            ]
            return tuple(map(_joined, zip(*found, strict=True)))
        return _sweep(model, encoded, sent, list(variants), own, max_tokens)
    return _sweep(model, encoded, donor, list(variants), own, max_tokens, metric)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """[1 + variant, read] from parts that each have the base at index 0."""
    return np.concatenate([parts[0], *(part[1:] for part in parts[1:])])


@beside_the_model
def _sweep(
    model: Model,
    encoded: "Encoded",
    donor: Donor | RemoteDonor | AdapterDonor | FileDonor | ValueDonor,
    variants: Sequence[Variant],
    own: Donor | RemoteDonor | None,
    max_tokens: int,
    metric: Metric | None = None,
) -> tuple[np.ndarray, ...]:
    import torch

    if isinstance(donor, AdapterDonor | FileDonor):
        donor = donor.load(model, variants)
    own = own or Donor.of(model, encoded, variants)
    idle = [all(_same(edit, donor, own) for edit in variant) for variant in variants]
    todo = [i for i, skip in enumerate(idle) if not skip]
    found: list[np.ndarray] = []
    at_once = max(1, max_tokens // encoded.fed.size - 1)
    for start in range(0, max(1, len(todo)), at_once):
        group = todo[start : start + at_once]
        plan = Plan.of([variants[i] for i in group])
        run = _Run(model, plan, donor, encoded)
        with torch.no_grad():
            logits = forward(model, encoded, run.rewrites())[0]
        read = run.read(logits, metric)
        if start == 0:  # what isn't run is the base
            found = [np.repeat(part[:1], 1 + len(variants), 0) for part in read]
        for whole, part in zip(found, read, strict=True):
            whole[[1 + group[i] for i in plan.order]] = part[1:]
    return tuple(found)


def _same(edit: Edit, donor: Any, own: Any) -> bool:
    """Whether the donor's value equals the model's own, bit for bit."""
    import torch

    if edit.site == "W_expert":  # comparing all of its weights costs as much as running it
        return False
    if edit.site not in MATRICES:
        mine = own.at(edit)
        theirs = donor.at(edit).to(mine)
        return mine.shape == theirs.shape and torch.equal(mine, theirs)
    pairs = list(
        zip(*(m.model.weight(edit.layer, edit.site, edit.unit) for m in (own, donor)), strict=True)
    )
    norm = {"W_Q": "q_norm", "W_K": "k_norm"}.get(edit.site)
    if norm and own.model.has(edit.layer, norm):
        pairs.append(tuple(m.model.norm_weight(edit.layer, norm) for m in (own, donor)))
    return all(a is b or torch.equal(a, b.to(a)) for a, b in pairs)


class _Run:
    """One growing batch: the rewrites that carry it out, and the reading of its logits."""

    def __init__(self, model: Model, plan: Plan, donor: Any, encoded: "Encoded") -> None:
        self.model, self.plan, self.donor, self.encoded = model, plan, donor, encoded
        self.slots = Slots(len(encoded.fed), encoded.tree)
        where = np.stack(encoded.read_at)
        self.unique, self.of_read = np.unique(where, axis=1, return_inverse=True)

    def rewrites(self) -> dict[Point, Rewrite]:
        every, entering = self.plan.edits(), self.plan.entering()
        found: dict[Point, Rewrite] = {}
        for layer in sorted({layer for layer, _ in every} | set(entering)):
            by_site = {site: edits for (at, site), edits in every.items() if at == layer}
            edits = LayerEdits(layer, self.model, self.donor, self.slots, by_site)
            for name, fn in in_layer(edits, entering.get(layer, 0)).items():
                found[layer, name] = fn
        found[self.model.spec.layers, "unembed"] = self.unembed
        return found

    def unembed(self, t: "Tensor") -> "Tensor":
        """Only the positions that are read go on to the unembedding, as one row."""
        import torch
        from einops import rearrange

        row, position = (torch.as_tensor(x, device=t.device) for x in self.unique)
        return rearrange(self.slots.gather(t, row, position), "slot read d -> 1 (slot read) d")

    def read(self, logits: "Tensor", metric: Metric | None) -> tuple[np.ndarray, ...]:
        """log p and whether the target is the argmax, [1 + slot, read] each; and a metric of one's
        own, [1 + slot, prompt]."""
        import torch
        from einops import rearrange

        reads = self.unique.shape[1]
        logits = rearrange(logits, "(slot read) token -> slot read token", read=reads)
        target = torch.as_tensor(self.encoded.read_target, device=logits.device)
        which = torch.as_tensor(self.of_read, device=logits.device)
        # The softmax's sum is taken one variant at a time, so that no second copy of all logits is
        # needed.
        total = torch.stack([variant.float().logsumexp(-1) for variant in logits])[:, which]
        log_prob = (logits[:, which, target].float() - total).double()
        top = logits.argmax(-1)[:, which] == target
        found = log_prob.cpu().numpy(), top.cpu().numpy()
        return found if metric is None else (*found, metric.each(logits, which, self.encoded))


def in_layer(edits: LayerEdits, joining: int) -> dict[str, Rewrite]:
    """Point -> rewrite, in the order in which a layer computes; `joining` variants start here."""
    projections = (Projection(edits, name) for name in "qkv")
    found: dict[str, Rewrite] = {}
    for part in (Residual(edits, joining), *projections, Heads(edits), Experts(edits)):
        found |= part.rewrites()
    return dict(sorted(found.items(), key=lambda item: ORDER.index(item[0])))
