"""Routing: which experts a mixture of experts sends its tokens to, before and after.

The chosen experts are those that the model's own experts were called with. Tokens are those of a
prompt and its right answer, without padding and without position 0: a first token sees only itself,
so that most prompts of a task share it.
"""

from typing import TYPE_CHECKING

import numpy as np

from mechforget.errors import MeasureError
from mechforget.measures.attention_change import entropy, js
from mechforget.measures.explained import described
from mechforget.measures.forgetting import AT
from mechforget.measures.inputs import Inputs, measure
from mechforget.measures.patching import cross, labelled
from mechforget.models.protocol import Model
from mechforget.models.sites import Edit
from mechforget.shapes import Array, Float
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.donor import capture
from mechforget.sweeps.plan import single
from mechforget.sweeps.reads import gates

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.tasks import Encoded

RULES = ("softmax", "sigmoid")


@measure
def routing(inputs: Inputs) -> "xr.Dataset":
    """How far the routing of a mixture of experts moved, on the task's prompts and answers.

    Returns: `layer` is that of a mixture; per prompt, means over its tokens (NaN without any):
        `js` (layer, prompt), bits, 0 same to 1 disjoint: between the gates' distributions. Softmax
        gates: of the softmax over all experts (gpt-oss's too, which weighs by a softmax over the
        chosen). Sigmoid gates: mean over experts of the Jensen-Shannon divergence of two coins
        with sigmoid(logit), chosen or not; the logit holds the gate's own bias.
        `overlap` (layer, prompt): share of pre's chosen experts that post chooses too.
        `switched` (layer, prompt, position): how many are others; NaN where no token counts.
        `choices` (at, layer, expert, prompt): how often an expert was chosen.
        Over all prompts: `expert_load` (at, layer, expert): its share of all choices; `load_js`
        (layer) and `load_entropy` (at, layer), bits, at most log2(experts).
        `angle` (layer, expert): between its gate row in pre and in post, degrees, 0 to 180.
        Attribute `rule`: softmax or sigmoid, as the recorded weights show.
    Raises: MeasureError: no mixture, a backend that doesn't show its routing, or a gate whose
        weights follow neither rule.
    Source: Lin 1991 (Jensen-Shannon); Kahan's formula for angles. Blind: DeepSeek's correction
        bias, added after the sigmoid, chooses but isn't in `js`; a gate row that only grew has
        angle 0; an expert that itself changed.
    Examples:
        >>> found = routing(mixture)
        >>> float(found.js.max()), float(found.overlap.min())  # nothing was changed
        (0.0, 1.0)
    """

    _require(inputs)
    rows = [gates(model) for model in (inputs.pre, inputs.post)]

    def some(chunk: Chunk) -> "xr.Dataset":
        pre, post = (decisions(m, chunk.encoded) for m in (inputs.pre, inputs.post))
        real = counted(chunk.encoded)
        rule = _rule([pre, post], real)
        width = inputs.encoded.ids.shape[1]
        found = change(pre, post, real, rule, width).assign_coords(
            layer=list(inputs.post.spec.moe), cluster=("prompt", chunk.encoded.cluster)
        )
        return found.assign_attrs(rule=rule)

    found = inputs.over_prompts("routing", some, variants=1)
    total = found["choices"].sum("prompt")
    load = total / total.sum("expert").clip(min=1)
    p = load.transpose("at", "layer", "expert").values
    return described(
        found.assign(
            expert_load=load,
            load_js=("layer", js(p[0], p[1])),
            load_entropy=(("at", "layer"), entropy(p)),
            angle=(("layer", "expert"), np.stack([angle(*r) for r in zip(*rows, strict=True)])),
        ),
        "Lin 1991",
        js=("bit", "Jensen-Shannon divergence of the gates' distributions"),
        overlap=("share", "chosen experts that pre and post have in common"),
        switched=("experts", "chosen experts of post that pre did not choose"),
        choices=("tokens", "tokens that chose an expert"),
        expert_load=("share", "an expert's share of all choices"),
        load_js=("bit", "Jensen-Shannon divergence of the experts' loads"),
        load_entropy=("bit", "entropy of the experts' loads"),
        angle=("degree", "angle between an expert's gate rows in pre and post"),
    )


@measure
def routing_restored(inputs: Inputs) -> "xr.Dataset":
    """Effect of replacing one checkpoint's routing, the chosen experts and their weights, by the
    other's.

    Returns: as `patching`, positive where routing carries the loss: `effect` (metric, direction,
        layer, prompt) of one layer's routing; `every` (metric, direction, prompt) of all at once.
        Of one expert's output: `patching(site="expert_out")`.
    Raises: MeasureError: no mixture, or a backend that doesn't show its routing.
    Source: as `patching`. Blind to damage in the experts themselves; they were trained for the
        tokens that their own checkpoint sends them.
    Examples:
        >>> float(abs(routing_restored(mixture).every).max())  # nothing was changed
        0.0
    """
    _require(inputs)
    spec = inputs.post.spec
    variants = [tuple(Edit(layer, "router") for layer in spec.moe), *single(spec, "router")]

    def some(chunk: Chunk) -> "xr.Dataset":
        effect = cross(inputs, chunk, variants)
        each = {direction: e[:, 1:] for direction, e in effect.items()}
        every = np.stack([e[:, 0] for e in effect.values()], axis=1)
        return labelled(each, spec, "router", None, chunk.encoded).assign(
            every=(("metric", "direction", "prompt"), every)
        )

    return described(
        inputs.over_prompts("routing restored", some, variants=len(variants)),
        "2404.15255",
        effect=("nats", "effect of patching the routing of one layer"),
        every=("nats", "effect of patching the routing of all layers"),
    )


def decisions(model: Model, encoded: "Encoded") -> dict[str, np.ndarray]:
    """Of each prompt's right-answer row: `gate` [layer, prompt, position, expert], the logits, and
    `chosen` and `weight` [layer, prompt, position, slot]."""
    layers, rows = model.spec.moe, encoded.first_rows
    points = [(layer, name) for layer in layers for name in ("gate", "router")]
    found = capture(model, encoded.fed, points, encoded.parent)
    gate, router = (
        np.stack([encoded.by_row(found[at, name], rows).double().cpu().numpy() for at in layers])
        for name in ("gate", "router")
    )
    return {"gate": gate, "chosen": router[..., 0].astype(int), "weight": router[..., 1]}


def counted(encoded: "Encoded") -> np.ndarray:
    """[prompt, position]: the tokens of each prompt's right-answer row, from the second on."""
    at = np.arange(encoded.ids.shape[1])
    return (at > 0) & (at < encoded.length[encoded.first_rows, None])


def change(
    pre: dict[str, np.ndarray], post: dict[str, np.ndarray], real: np.ndarray, rule: str, width: int
) -> "xr.Dataset":
    """The measure on what two models decided; `switched` is made `width` positions wide."""
    import xarray as xr

    experts, slots = pre["gate"].shape[-1], pre["chosen"].shape[-1]
    weight = np.where(real, 1.0, 0) / np.where(real.any(1), real.sum(1), np.nan)[:, None]
    distance = np.where(real, divergence(pre["gate"], post["gate"], rule), 0)
    uses = [(p["chosen"][..., None] == np.arange(experts)).any(-2) for p in (pre, post)]
    shared = (uses[0] & uses[1]).sum(-1)  # [layer, prompt, position]
    switched = np.full((*shared.shape[:2], width), np.nan)
    switched[..., : shared.shape[-1]] = np.where(real, slots - shared, np.nan)
    count = np.stack([(u & real[..., None]).sum(2) for u in uses]).swapaxes(-1, -2)
    dims = ("layer", "prompt")
    return xr.Dataset(
        {
            "js": (dims, (distance * weight).sum(-1)),
            "overlap": (dims, (shared / slots * weight).sum(-1)),
            "switched": ((*dims, "position"), switched),
            "choices": (("at", "layer", "expert", "prompt"), count),
        },
        coords={"at": list(AT), "expert": range(experts), "position": range(width)},
    )


def divergence(
    pre: Float[Array, "*place expert"], post: Float[Array, "*place expert"], rule: str
) -> Float[Array, "*place"]:
    """Bits, 0 to 1, between two gates' logits."""
    if rule == "softmax":
        return js(_softmax(pre), _softmax(post))
    return js(_sigmoid(pre)[..., None], _sigmoid(post)[..., None]).mean(-1)  # coins: p and 1 − p


def angle(
    pre: Float[Array, "*place d_model"], post: Float[Array, "*place d_model"]
) -> Float[Array, "*place"]:
    """Degrees between the rows; exact near 0, where an arc cosine is rounding (Kahan)."""
    u, v = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (pre, post))
    return np.degrees(
        2 * np.arctan2(np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1))
    )


def _rule(found: list[dict[str, np.ndarray]], real: np.ndarray) -> str:
    """Which function of the gate's logits the recorded weights are, up to a token's factor.

    Families scale and renormalise, so with several slots their ratios count; a single slot's weight
    is compared as it is (one that is always 1 is a softmax over the chosen).
    Raises: MeasureError: none, so that these logits aren't what the experts are chosen by.
    """
    worst: dict[str, float] = dict.fromkeys(RULES, 0.0)
    for one in found:
        logits, chosen, weight = (one[name][:, real] for name in ("gate", "chosen", "weight"))
        if not weight.size:
            continue
        for rule, score in (("softmax", _softmax(logits)), ("sigmoid", _sigmoid(logits))):
            want = np.take_along_axis(score, chosen, -1)
            off = abs(weight - want)
            if weight.shape[-1] > 1:
                off = abs(_share(weight) - _share(want))
            elif rule == "softmax":
                off = np.minimum(off, abs(weight - 1))
            worst[rule] = max(worst[rule], float(off.max()))
    best = min(RULES, key=worst.__getitem__)
    if not worst[best] < 0.02:  # a bfloat16's rounding; a wrong rule is off by far more
        raise MeasureError(
            "the experts' weights are neither a softmax nor a sigmoid of their gate's logits "
            "(off by "
            f"{worst[best]:.2g}): routing of this family can't be compared; leave it out"
        )
    return best


def _share(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(x.sum(-1, keepdims=True), 1e-30)


def _softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))  # no overflow


def _require(inputs: Inputs) -> None:
    for model in (inputs.pre, inputs.post):
        if not model.spec.moe or "router" not in model.spec.sites:
            raise MeasureError(
                f"this {model.spec.family} model shows no routing: want a mixture of "
                "experts on backend nnsight or remote, or leave routing out"
            )
