"""The growing batch: all variants of all layers in one forward pass.

The base rows run once. On entering layer l one copy of the base rows per variant that starts at l
is appended; each copy is rewritten at its sites; all go on together. Below its first edit a variant
is the base, so nothing is computed twice, and every weight is read once for the whole sweep.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.models.beside import beside_the_model, elsewhere
from mechforget.models.protocol import Model, Point
from mechforget.models.sites import MATRICES, PROJECTION, Edit
from mechforget.sweeps.donor import AdapterDonor, Donor, FileDonor, RemoteDonor, ValueDonor, tokens
from mechforget.sweeps.plan import Plan, Variant

if TYPE_CHECKING:
    from torch import Tensor

    from mechforget.tasks.encoded import Encoded

REQUEST = 200e6  # bytes of a donor's values in one request; servers refuse much larger ones


def sweep(
    model: Model,
    encoded: "Encoded",
    donor: Donor | RemoteDonor | ValueDonor,
    variants: Sequence[Variant],
    *,
    own: Donor | RemoteDonor | None = None,
    max_tokens: int = 1 << 30,
) -> tuple[np.ndarray, np.ndarray]:
    """Runs every variant of every prompt; exact. A served model runs them in one request.

    Args: encoded: the prompts; donor: its rows are aligned with encoded's. own: the model's own
        activations at the same points, if they are known. max_tokens: rows times positions in one
        forward; more variants than fit run in several.
    Returns: log p of each read's target, nats, and whether the target is the argmax, both
        [1 + variant, read]; index 0 is the base. A variant that would rewrite every value with
        itself isn't run: it is the base, exactly.
    """
    if elsewhere(model):
        own = None  # it has its own activations where it is
        sent = donor.for_recipient(model) if isinstance(donor, RemoteDonor) else donor
        if isinstance(sent, ValueDonor):
            found = [
                _sweep(model, encoded, part, some, own, max_tokens)
                for part, some in sent.split(variants, REQUEST)
            ]
            return _joined([log_prob for log_prob, _ in found]), _joined([top for _, top in found])
        return _sweep(model, encoded, sent, list(variants), own, max_tokens)
    return _sweep(model, encoded, donor, list(variants), own, max_tokens)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """[1 + variant, read] of all parts; the base came back with each."""
    return np.concatenate([parts[0], *(part[1:] for part in parts[1:])])


@beside_the_model
def _sweep(
    model: Model,
    encoded: "Encoded",
    donor: Donor | RemoteDonor | AdapterDonor | FileDonor | ValueDonor,
    variants: Sequence[Variant],
    own: Donor | RemoteDonor | None,
    max_tokens: int,
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    ids = tokens(encoded, model)
    if isinstance(donor, AdapterDonor | FileDonor):
        donor = donor.load(model, variants)
    own = own or Donor.of(model, encoded, variants)
    idle = [all(_same(edit, donor, own) for edit in variant) for variant in variants]
    todo = [i for i, skip in enumerate(idle) if not skip]
    log_prob = np.empty((1 + len(variants), len(encoded.read_row)))
    top = np.empty(log_prob.shape, bool)
    at_once = max(1, max_tokens // ids.numel() - 1)
    for start in range(0, max(1, len(todo)), at_once):
        group = todo[start : start + at_once]
        plan = Plan.of([variants[i] for i in group])
        run = _Run(model, plan, donor, encoded)
        with torch.no_grad():
            logits = model.run(ids, run.rewrites())[0]
        found_log_prob, found_top = run.read(logits)
        if start == 0:
            log_prob[:], top[:] = found_log_prob[0], found_top[0]
        index = [1 + group[i] for i in plan.order]
        log_prob[index], top[index] = found_log_prob[1:], found_top[1:]
    return log_prob, top


def _same(edit: Edit, donor: Any, own: Any) -> bool:
    """Whether the donor's value is the model's own, bit for bit."""
    import torch

    if edit.site == "W_expert":  # to compare its weights is no less than to run them
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
        self.rows = encoded.n_rows
        where = np.stack([encoded.read_row, encoded.read_position])
        self.unique, self.of_read = np.unique(where, axis=1, return_inverse=True)

    def block(self, slot: int) -> slice:
        return slice((slot + 1) * self.rows, (slot + 2) * self.rows)

    def rewrites(self) -> dict[Point, Callable[["Tensor"], "Tensor | None"]]:
        edits = self.plan.edits()
        entering = self.plan.entering()
        layers = sorted({layer for layer, _ in edits} | set(entering))
        found: dict[Point, Callable[[Tensor], Tensor | None]] = {}
        for layer in layers:
            here = {site: todo for (at, site), todo in edits.items() if at == layer}
            found |= self._layer(layer, here, entering.get(layer, 0))
        found[self.model.spec.layers, "unembed"] = self._gather
        return found

    def _layer(
        self, layer: int, here: dict[str, list[tuple[int, Edit]]], new: int
    ) -> dict[Point, Callable[["Tensor"], "Tensor | None"]]:
        """The rewrites of one layer, in the order in which the layer computes; `new` variants
        start here."""
        kept: dict[str, Tensor] = {}  # values of this layer that a later rewrite of it needs
        found: dict[Point, Callable[[Tensor], Tensor | None]] = {}

        def enter(t: "Tensor") -> "Tensor":
            if new:
                t = _append(t, self.rows, new)
            self._put(t, here.get("resid_pre", ()))
            kept["resid_pre"] = t
            return t

        found[layer, "resid_pre"] = enter
        for matrix in ("W_Q", "W_K", "W_V"):
            name = PROJECTION[matrix]
            if here.get(matrix):
                found[layer, f"{name}_in"] = lambda t, name=name: kept.__setitem__(name, t)
            if here.get(matrix) or here.get(name):

                def project(t: "Tensor", matrix: str = matrix, name: str = name) -> "Tensor":
                    for slot, edit in here.get(matrix, ()):
                        t[self.block(slot), :, edit.head] = self._project(kept[name], slot, edit)
                    return self._put(t, here.get(name, ()))

                found[layer, name] = project
            norm = f"{name}_norm"
            if here.get(matrix) and name != "v" and self.model.has(layer, norm):
                found[layer, f"{norm}_in"] = lambda t, norm=norm: kept.__setitem__(norm, t)

                def renorm(t: "Tensor", matrix: str = matrix, norm: str = norm) -> "Tensor":
                    for slot, edit in here[matrix]:
                        rows = self.block(slot)
                        theirs = self.donor.model.norm(layer, norm, kept[norm][rows]).to(t)
                        theirs = self.model.per_head(norm, theirs)[:, :, edit.head]
                        self.model.per_head(norm, t)[rows, :, edit.head] = theirs
                    return t

                found[layer, norm] = renorm
        if here.get("pattern"):
            found[layer, "pattern"] = lambda t: self._put(t, here["pattern"])
        outputs = here.get("head_out", []) + here.get("W_O", [])
        if here.get("z") or outputs:
            added: list[tuple[int, Edit, Tensor]] = []

            def head(t: "Tensor") -> "Tensor":
                self._put(t, here.get("z", ()))
                for slot, edit in outputs:
                    added.append((slot, edit, self._output(t, slot, edit)))
                for slot, edit in outputs:
                    t[self.block(slot), _at(edit), edit.head] = 0
                return t

            def output(t: "Tensor") -> "Tensor":
                for slot, edit, value in added:
                    t[self.block(slot), _at(edit)] += value[:, _at(edit)]
                return t

            found[layer, "z"] = head
            if outputs:
                found[layer, "attn_raw"] = output
        if here.get("attn_out") or here.get("resid_mid"):

            def attn_out(t: "Tensor") -> "Tensor":
                for slot, edit in here.get("resid_mid", ()):
                    rows, scale = self.block(slot), self.model.spec.scale
                    before = kept["resid_pre"][rows].to(t)  # seen before it is moved here
                    wanted = (self.donor.at(edit).to(t) - before) / scale
                    t[rows, _at(edit)] = wanted[:, _at(edit)]
                return self._put(t, here.get("attn_out", ()))

            found[layer, "attn_out"] = attn_out
        experts = here.get("expert_out", []) + here.get("W_expert", [])
        if experts:
            found[layer, "experts_in"] = lambda t: kept.__setitem__("experts_in", t)
        if experts or here.get("router"):

            def route(t: "Tensor") -> "Tensor":
                kept["router"] = self._put(t, here.get("router", ()))
                return t

            found[layer, "router"] = route
        if experts:

            def swap(t: "Tensor") -> "Tensor":
                for slot, edit in experts:
                    given = [kept[name][self.block(slot)] for name in ("experts_in", "router")]
                    mine = self.model.expert_out(layer, edit.unit, *given)
                    change = self._expert(edit, *given).to(mine) - mine
                    t[self.block(slot), _at(edit)] += change[:, _at(edit)]
                return t

            found[layer, "experts"] = swap
        for site in ("mlp_out", "resid_post"):
            if here.get(site):
                found[layer, site] = lambda t, site=site: self._put(t, here[site])
        return found

    def _put(self, t: "Tensor", todo: Sequence[tuple[int, Edit]]) -> "Tensor":
        """Writes the donor's values into the variants' rows, in place."""
        for slot, edit in todo:
            value = self.donor.at(edit).to(t)
            if edit.head is None:
                t[self.block(slot), _at(edit)] = value[:, _at(edit)]
            elif edit.site == "pattern":
                t[self.block(slot), edit.head, _at(edit)] = value[:, _at(edit)]
            else:
                t[self.block(slot), _at(edit), edit.head] = value[:, _at(edit)]
        return t

    def _project(self, x: "Tensor", slot: int, edit: Edit) -> "Tensor":
        """The donor's projection of what this variant's rows feed to the recipient's."""
        w, b = self.donor.model.weight(edit.layer, edit.site, edit.unit)
        y = x[self.block(slot)] @ w.to(x).T
        return y if b is None else y + b.to(x)

    def _output(self, z: "Tensor", slot: int, edit: Edit) -> "Tensor":
        """What the head adds to the attention output: the donor's own, or this z by its W_O."""
        if edit.site == "head_out":
            return self.donor.at(edit).to(z)
        w, _ = self.donor.model.weight(edit.layer, "W_O", edit.unit)
        return z[self.block(slot), :, edit.head] @ w.to(z).T

    def _expert(self, edit: Edit, x: "Tensor", router: "Tensor") -> "Tensor":
        """What the expert adds: the donor's own, or what its weights make of this variant's rows
        and routing."""
        if edit.site == "expert_out":
            return self.donor.at(edit)
        return self.donor.model.expert_out(edit.layer, edit.unit, x, router)

    def _gather(self, t: "Tensor") -> "Tensor":
        """Only the positions that are read go on to the unembedding."""
        import torch

        row, position = (torch.as_tensor(x, device=t.device) for x in self.unique)
        slots = torch.arange(t.shape[0] // self.rows, device=t.device)[:, None] * self.rows
        return t[slots + row, position].flatten(0, 1)[None]

    def read(self, logits: "Tensor") -> tuple[np.ndarray, np.ndarray]:
        """log p and whether the target is the argmax, [1 + slot, read] each."""
        import torch

        logits = logits.view(-1, self.unique.shape[1], logits.shape[-1])
        target = torch.as_tensor(self.encoded.read_target, device=logits.device)
        which = torch.as_tensor(self.of_read, device=logits.device)
        # The softmax's sum one variant at a time: it needs no second copy of all logits.
        total = torch.stack([variant.float().logsumexp(-1) for variant in logits])[:, which]
        log_prob = (logits[:, which, target].float() - total).double()
        top = logits.argmax(-1)[:, which] == target
        return log_prob.cpu().numpy(), top.cpu().numpy()


def _append(t: "Tensor", rows: int, copies: int) -> "Tensor":
    import torch

    return torch.cat([t, t[:rows].repeat(copies, *[1] * (t.ndim - 1))])


def _at(edit: Edit) -> slice:
    """The edited positions, as a slice so that the axis stays."""
    return slice(None) if edit.position is None else slice(edit.position, edit.position + 1)
