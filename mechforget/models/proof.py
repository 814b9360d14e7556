"""A backend proves itself on each checkpoint before a number of it is believed.

Logits equal plain Hugging Face's; contributions to the residual stream sum; heads sum to the
attention output; appended rows are computed like the first ones; at every site a rewritten
activation changes nothing and a changed one moves the logits.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from mechforget.errors import ModelError
from mechforget.models.protocol import Proof
from mechforget.models.sites import ACTIVATIONS, MATRICES, PROJECTION, Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 2e-5  # of the largest logit: float32 rounding through some tens of layers
BFLOAT16_TOLERANCE = 3e-2  # eight bits of mantissa


def reference(hf_model: "nn.Module") -> "tuple[Tensor, Tensor]":
    """Probe ids [2, 11] and plain Hugging Face's logits for them, before a backend wraps it."""
    import torch

    config: Any = hf_model.config
    generator = torch.Generator().manual_seed(0)
    counts = (config.num_attention_heads, getattr(config, "num_key_value_heads", None))
    length = next(n for n in (11, 7, 5) if n not in counts)  # so that no axis is mistaken
    ids = torch.randint(0, config.vocab_size, (2, length), generator=generator)
    ids = ids.to(next(hf_model.parameters()).device)
    with torch.no_grad():
        return ids, hf_model(ids, use_cache=False).logits


def prove(model: Any, ids: "Tensor", expected: "Tensor") -> None:
    """Sets `model.spec` and `model.proofs`. Raises ModelError: the logits are not the model's."""
    import torch

    with torch.no_grad():
        logits = model.run(ids, {})
        scale = expected.abs().max().clamp(min=1).item()
        tolerance = TOLERANCE if logits.element_size() >= 4 else BFLOAT16_TOLERANCE
        gap = (logits - expected).abs().max().item() / scale
        if not gap <= tolerance:
            raise ModelError(
                f"{type(model).__name__} gives other logits than Hugging Face for "
                f"{model.family} (by {gap:.1e} of their scale, want <= {tolerance:.0e}): "
                "this architecture is not supported"
            )
        proofs = [Proof("logits equal plain Hugging Face", True, f"by {gap:.1e} of their scale")]
        if model.has(0, "q_norm"):
            normed = read(model, ids, 0, "q_norm")["q_norm"]
            model.norms_heads_first = normed.ndim == 4 and normed.shape[1] != ids.shape[1]
        residual, detail = _residual_scale(model, ids)
        proofs.append(
            Proof("contributions sum to the residual stream", residual is not None, detail)
        )
        proofs.append(_heads_sum(model, ids))
        proofs.append(_rows_grow(model, ids, logits, tolerance * scale))
        if not proofs[-1].passed:
            raise ModelError(
                f"rows appended to a {model.family} batch give other logits "
                f"({proofs[-1].detail}): this architecture is not supported"
            )
        live, dead = _live_sites(model, ids, residual)
        if "z" not in live or not proofs[2].passed:
            live.discard("head_out")  # what is added at attn_raw is taken out at z
        live |= {m for m in MATRICES if PROJECTION.get(m, "head_out") in live}
        left_out = f"; left out: {', '.join(dead)}" if dead else ""
        proofs.append(Proof("hooks are live", True, f"{len(live)} sites{left_out}"))
        model.proofs = tuple(proofs)
        model.spec = Spec(
            family=model.family,
            layers=model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            d_model=read(model, ids, 0, "resid_pre")["resid_pre"].shape[-1],
            d_vocab=expected.shape[-1],
            sites=frozenset(live),
            residual_scale=residual,
        )


def read(model: Any, ids: "Tensor", layer: int, *names: str) -> "dict[str, Tensor]":
    """The activations of some points of one layer."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda t: found.__setitem__(name, t.clone())

    model.run(ids, {(layer, name): keep(name) for name in names})
    return found


def _residual_scale(model: Any, ids: "Tensor") -> "tuple[float | None, str]":
    """The factor c of resid_post = resid_pre + c · (attn_out + mlp_out), if there is one."""
    worst, scales = 0.0, []
    for layer in {0, model.layers - 1}:
        at = read(model, ids, layer, "resid_pre", "attn_out", "mlp_out", "resid_post")
        written = (at["resid_post"] - at["resid_pre"]).double()
        parts = (at["attn_out"] + at["mlp_out"]).double()
        scale = ((written * parts).sum() / (parts * parts).sum()).item()
        scale = 1.0 if abs(scale - 1) < 1e-3 else scale
        scales.append(scale)
        worst = max(worst, ((written - scale * parts).norm() / written.norm()).item())
    ok = worst < (1e-4 if at["attn_out"].element_size() >= 4 else BFLOAT16_TOLERANCE)
    ok = ok and max(scales) - min(scales) < 1e-3
    return (scales[0] if ok else None), f"remainder {worst:.1e} of what a layer writes"


def _heads_sum(model: Any, ids: "Tensor") -> Proof:
    """Σ_h z_h W_O,h + b_O is what the output projection gave."""
    import torch

    worst = 0.0
    for layer in {0, model.layers - 1}:
        at = read(model, ids, layer, "z", "attn_raw")
        slices = [model.weight(layer, "W_O", h)[0] for h in range(model.heads)]
        total = sum(at["z"][:, :, h] @ w.T for h, w in enumerate(slices))
        bias = at["attn_raw"] - total
        spread = (bias - bias[:1, :1]).abs().max() / at["attn_raw"].abs().max().clamp(min=1e-9)
        worst = max(worst, torch.nan_to_num(spread, nan=1e9).item())
    return Proof("heads sum to the attention output", worst < 1e-2, f"remainder {worst:.1e}")


def _rows_grow(model: Any, ids: "Tensor", logits: "Tensor", tolerance: float) -> Proof:
    """Rows appended halfway come out like the rows they copy."""
    layer = model.layers // 2
    grown = model.run(ids, {(layer, "resid_pre"): lambda t: t.repeat(3, 1, 1)})
    gap = (grown - logits.repeat(3, 1, 1)).abs().max().item()
    return Proof("appended rows equal the rows they copy", gap <= 2 * tolerance, f"by {gap:.1e}")


def _live_sites(model: Any, ids: "Tensor", scale: float | None) -> tuple[set[str], list[str]]:
    """Sites where a changed value moves the logits and one written back doesn't; and the dead.

    One row per site is appended, and changed at its site only, in the first and the last layer.
    """
    ids = ids[:1, :5]
    point = {"head_out": "attn_raw", "resid_mid": "attn_out"}
    sites = [
        site
        for site in ACTIVATIONS
        if model.serves(0, point.get(site, site))
        and not (site == "resid_mid" and (scale is None or model.parallel))
    ]
    dead: set[str] = set()
    for layer in {0, model.layers - 1}:
        rows: dict[str, list[int]] = {}  # which rows a point changes
        for row, site in enumerate(sites, start=1):
            rows.setdefault(point.get(site, site), []).append(row)

        def change(t: Any, at: list[int]) -> Any:
            t[at] = t[at] * 1.5 + 0.1
            return t

        def enter(t: Any, at: list[int]) -> Any:
            return change(t.repeat(len(sites) + 1, 1, 1), at)

        rewrites = {
            (layer, name): partial(enter if name == "resid_pre" else change, at=at)
            for name, at in rows.items()
        }
        logits = model.run(ids, rewrites)
        gap = (logits - logits[:1]).abs().flatten(1).max(1).values
        noise = 1e-6 * logits.abs().max()
        dead |= {site for row, site in enumerate(sites, start=1) if gap[row] <= noise}
    points = {point.get(site, site) for site in sites}
    every = {(layer, name): lambda t: t.clone() for layer in range(model.layers) for name in points}
    if not (model.run(ids, every) - model.run(ids, {})).abs().max() == 0:
        raise ModelError(f"writing a {model.family} model's activations back moves its logits")
    return {site for site in sites if site not in dead}, sorted(dead)
