"""Every measure, and gradients, on every backend and family, against plain Hugging Face.

The oracles are forward hooks, weight surgery and autograd on unwrapped models. Agreement is to 1e-5
of the largest logit in float32; in bfloat16 to 2 % of it: eight bits of mantissa, and sums in
another order. Where there is a GPU every case runs there too; the oracles stay on the CPU.
"""

import copy
from dataclasses import replace
from functools import wraps

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import jensenshannon
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from mechforget import measures
from mechforget.errors import MeasureError, ModelError, SweepError
from mechforget.measures import Inputs
from mechforget.measures.attention_change import HALF
from mechforget.measures.neutral_text import neutral
from mechforget.measures.readout import PROBES, coded, probes
from mechforget.models.remote import Remote
from mechforget.sweeps.curvature import eigenvalues, gauss_newton_trace, hessian, traces
from mechforget.sweeps.gradients import gradients
from mechforget.sweeps.gram import gram
from tests import oracle
from tests.measures import test_drift, toy
from tests.measures.test_logit_attribution import by_hand
from tests.remote.server import server  # noqa: F401 (a fixture)
from tests.sweeps.test_shares import MOE
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

BACKENDS = ("transformer_lens", "nnsight")
FLOAT32, BFLOAT16 = 1e-5, 2e-2
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
KINDS = [(f, torch.float32) for f in sorted(FAMILIES)]
KINDS += [(f, torch.bfloat16) for f in ("llama", "gemma2", "qwen3")]
CASES = [(f, b, dtype, device) for device in DEVICES for f, dtype in KINDS for b in BACKENDS]
EAGER = dict(attn_implementation="eager", dtype=torch.float32)
PICKS = ((0, 3), (2, 1))  # layer and head of what is compared: first and last, of both groups


class Pair:
    """Two plain models, the package's around copies of them, and what both are asked."""

    def __init__(self, hf_pre, hf_post, pre, post, backend, dtype=torch.float32):
        self.hf_pre, self.hf_post, self.backend, self.dtype = hf_pre, hf_post, backend, dtype
        batch = toy.encoded()
        other = np.where(np.arange(batch.ids.shape[1]) == 2, (batch.ids + 7) % 397 + 3, batch.ids)
        self.given = Inputs(pre, post, batch, replace(batch, ids=other))
        self.ids, self.other = torch.as_tensor(batch.ids), torch.as_tensor(other)
        self.base = {m: self.run(m) for m in (hf_pre, hf_post)}
        largest = max(self.logits(m).abs().max().item() for m in (hf_pre, hf_post))
        self.tolerance = (FLOAT32 if dtype == torch.float32 else BFLOAT16) * max(1, largest)

    def logits(self, model):
        return oracle.run(model, self.ids)

    def run(self, model):
        return toy.scores(self.logits(model))

    def effects(self, changed):
        """direction -> metric -> [prompt], given the logits of (recipient, donor)."""
        sides = {
            "restore": (self.hf_post, self.hf_pre, 1),
            "break": (self.hf_pre, self.hf_post, -1),
        }
        for direction, (recipient, donor, sign) in sides.items():
            mixed, base = toy.scores(changed(recipient, donor)), self.base[recipient]
            yield direction, {m: sign * (mixed[m] - base[m]) for m in base}

    def close(self, got, want, times=1.0):
        np.testing.assert_allclose(got, want, atol=times * self.tolerance, rtol=0)

    def agree(self, effect, changed):
        """An effect (metric, direction, prompt), and what plain hooks give. log_prob sums over the
        tokens of an answer, so rounding does too; `correct` may flip where two tokens tie."""
        for direction, want in self.effects(changed):
            for metric in ("log_prob", "logit_diff"):
                self.close(effect.sel(metric=metric, direction=direction), want[metric], 8)
            if self.dtype == torch.float32:
                got = effect.sel(metric="correct", direction=direction)
                np.testing.assert_array_equal(got, want["correct"])


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0]}-{c[1]}-{str(c[2])[6:]}-{c[3]}")
def pair(request):
    family, backend, dtype, device = request.param
    hf_pre, hf_post = (tiny_model(family, seed).to(dtype) for seed in (1, 0))
    oracle.share_qk_norms(hf_post, hf_pre)
    models = (toy.opened(m, backend, device) for m in (hf_pre, hf_post))
    return Pair(hf_pre, hf_post, *models, backend, dtype)


def forgetting(pair):
    score = measures.forgetting(pair.given).score
    for at, model in (("pre", pair.hf_pre), ("post", pair.hf_post)):
        for metric in ("log_prob", "logit_diff"):
            pair.close(score.sel(at=at, metric=metric), pair.base[model][metric], 8)


def patching(pair):
    sites = ("z", "head_out", "q", "k", "v", "attn_out", "mlp_out", "resid_pre", "resid_post")
    for site in sites:
        effect = measures.patching(pair.given, site=site).effect
        for layer, head in PICKS:
            unit = head if "head" in effect.dims else None
            where = {"layer": layer} | ({} if unit is None else {"head": unit})
            if site in ("k", "v"):
                unit = pair.given.post.spec.group(head)

            def changed(to, of, at=(layer, site, unit)):
                return oracle.patched(to, of, pair.ids, pair.ids, *at)

            pair.agree(effect.sel(where, drop=True), changed)


def patching_positions(pair):
    effect = measures.patching(pair.given, site="resid_pre", positions=(1, 3)).effect

    def changed(to, of):
        return oracle.patched(to, of, pair.ids, pair.ids, 1, "resid_pre", position=3)

    pair.agree(effect.sel(layer=1, position=3, drop=True), changed)


def sets(pair):
    single = measures.patching(pair.given).effect.sel(metric="log_prob", direction="restore")
    found = measures.top_sets(pair.given, effect=single, sizes=(1, 2))
    for half in (0, 1):
        judged = found.judged_in.values == half
        layer, head = found.chosen.values[half, 0, 0].tolist()
        logits = oracle.patched(
            pair.hf_post, pair.hf_pre, pair.ids, pair.ids, layer, "head_out", head
        )
        want = toy.scores(logits)["log_prob"] - pair.base[pair.hf_post]["log_prob"]
        pair.close(found.top.sel(metric="log_prob", k=1)[judged], want[judged], 8)


def grafting(pair):
    effect = measures.grafting(pair.given, matrices=("q", "k", "v", "o", "all"), heads=PICKS).effect
    for matrix in effect.matrix.values:
        for layer, head in PICKS:

            def changed(to, of, at=(layer, head, matrix)):
                return oracle.run(oracle.grafted(to, of, *at), pair.ids)

            pair.agree(effect.sel(matrix=matrix, layer=layer, head=head, drop=True), changed)


def grafting_modules(pair):
    found = measures.grafting_modules(pair.given)

    def mlp(to, of):
        mixed = copy.deepcopy(to)
        blocks = oracle.places(to, 1)[0], oracle.places(mixed, 1)[0], oracle.places(of, 1)[0]
        for name in ("mlp", "feed_forward"):
            if hasattr(blocks[1], name):
                getattr(blocks[1], name).load_state_dict(getattr(blocks[2], name).state_dict())
        return oracle.run(mixed, pair.ids)

    pair.agree(found.mlp.sel(layer=1, drop=True), mlp)


def weights(model, ids):
    with torch.no_grad():
        return model(ids, output_attentions=True, use_cache=False).attentions


def refused_where_there_are_no_patterns(measure):
    def tried(pair):
        if "pattern" in pair.given.post.spec.sites:
            return measure(pair)
        assert (pair.backend, pair.hf_post.config.model_type) == ("transformer_lens", "llama4_text")
        with pytest.raises(MeasureError, match="attention patterns of a llama4_text model cannot"):
            getattr(measures, measure.__name__)(pair.given)

    return wraps(measure)(tried)


@refused_where_there_are_no_patterns
def attention_change(pair):
    batch, found = pair.given.encoded, measures.attention_change(pair.given)
    pre, post = (weights(m, pair.ids) for m in (pair.hf_pre, pair.hf_post))
    for prompt in (0, 6):
        row = int(np.flatnonzero(batch.row_prompt == prompt)[0])
        for layer, head in PICKS:
            each = []
            for query in range(1, batch.length[row]):
                p, q = (m[layer][row, head, query].double().numpy() for m in (pre, post))
                p, q = (np.append(x, max(0, 1 - x.sum())) for x in (p, q))
                each.append(jensenshannon(p, q, base=2) ** 2)
            got = found.js.sel(layer=layer, head=head, prompt=prompt)
            pair.close(got, np.mean(each))


@refused_where_there_are_no_patterns
def attention_roles(pair):
    found = measures.attention_roles(pair.given, seed=2)
    vocabulary = pair.hf_post.config.vocab_size
    ids = np.tile(np.random.default_rng(2).integers(0, vocabulary, (50, HALF)), 2)
    pattern = weights(pair.hf_post, torch.as_tensor(ids))
    for layer, head in PICKS:
        rows = pattern[layer][7, head].double()
        for name, back in (("induction", HALF - 1), ("previous", 1)):
            want = np.mean([float(rows[i, i - back]) for i in range(HALF, 2 * HALF)])
            got = found[name].sel(at="post", layer=layer, head=head, sequence=7)
            pair.close(got, want)


def logit_attribution(pair):
    found = measures.logit_attribution(pair.given)
    assert found.heads.dims == ("at", "prompt", "layer", "head")
    exact = pair.dtype == torch.float32
    for at, model in (("pre", pair.hf_pre), ("post", pair.hf_post)):
        want, got = by_hand(model), found.sel(at=at)
        told = [p for p in range(14) if np.isfinite(got.logit_diff[p])]
        assert told == sorted(want) and 0 < len(told) < 14
        for prompt, parts in want.items():
            scale = max(1, abs(parts["heads"]).max(), abs(parts["mlps"]).max())
            for name, value in parts.items():
                limit = (1e-4 if exact else 10 * pair.tolerance) * scale
                np.testing.assert_allclose(
                    got[name].sel(prompt=prompt), value, atol=limit, rtol=1e-7, err_msg=name
                )
        total = got.heads.sum(("layer", "head")) + got.mlps.sum("layer") + got.embed + got.rest
        limit = 1e-4 if exact else pair.tolerance
        np.testing.assert_allclose(total[told], got.logit_diff[told], atol=limit)


def clean_corrupt(pair):
    for site in ("z", "mlp_out"):
        effect = measures.clean_corrupt(pair.given, site=site).effect
        for layer, head in PICKS:
            unit = head if site == "z" else None
            for at, model in (("pre", pair.hf_pre), ("post", pair.hf_post)):
                clean, other = pair.ids, pair.other
                denoised = oracle.patched(model, model, other, clean, layer, site, unit)
                noised = oracle.patched(model, model, clean, other, layer, site, unit)
                denoised, noised = (toy.scores(x)["log_prob"] for x in (denoised, noised))
                worse = toy.scores(oracle.run(model, other))["log_prob"]
                got = effect.sel(at=at, metric="log_prob", layer=layer)
                got = got if unit is None else got.sel(head=unit)
                pair.close(got.sel(direction="denoise"), denoised - worse, 8)
                pair.close(got.sel(direction="noise"), pair.base[model]["log_prob"] - noised, 8)


def differentiated(model, ids, metric):
    """Plain autograd: ((layer, site) -> gradient, parameter's name -> gradient)."""
    batch, kept, handles = toy.encoded(), {}, []

    def keep(name, end):
        def hook(module, args, *rest):
            kept[name] = oracle.first(rest[0]) if end == "out" else args[0]

        return hook

    for layer in range(3):
        block, attention, o, attn_out, mlp_out = oracle.places(model, layer)
        for name, module, end in (
            ("z", o, "in"),
            ("attn_raw", o, "out"),
            ("attn_out", attn_out, "out"),
            ("mlp_out", mlp_out, "out"),
            ("resid_post", block, "out"),
            ("v", getattr(attention, oracle.qkv_columns(model, "v", 0)[0]), "out"),
        ):
            hook = keep((layer, name), end)
            register = module.register_forward_hook
            register = module.register_forward_pre_hook if end == "in" else register
            handles.append(register(hook))
    out = model(ids, output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    kept |= {(layer, "pattern"): a for layer, a in enumerate(out.attentions)}
    log_p = out.logits.float().log_softmax(-1)
    total = 0
    for row, position, target, prompt, wrong in zip(
        batch.read_row,
        batch.read_position,
        batch.read_target,
        batch.read_prompt,
        batch.read_wrong,
        strict=True,
    ):
        paired = (batch.read_wrong & (batch.read_prompt == prompt)).any()
        if metric == "log_prob":
            total = total + (0 if wrong else 1) * log_p[row, position, target]
        elif paired:
            total = total + (-1 if wrong else 1) * log_p[row, position, target]
    names, held = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(total, [*kept.values(), *held], materialize_grads=True)
    return dict(zip(kept, found, strict=False)), dict(zip(names, found[len(kept) :], strict=True))


def gradient(pair):
    """Of activations, in each site's own layout."""
    model = pair.given.post
    names = ("z", "attn_raw", "attn_out", "mlp_out", "resid_post", "v", "pattern")
    names = [n for n in names if n == "attn_raw" or n in model.spec.sites]
    points = [(layer, name) for layer in range(3) for name in names]
    for metric in ("log_prob", "logit_diff"):
        found = gradients(model, pair.given.encoded, points, metric=metric)
        at, _ = differentiated(pair.hf_post, pair.ids, metric)
        for (layer, name), got in found.activations.items():
            want = at[layer, name]
            if name == "z":
                want = want.unflatten(-1, (model.spec.heads, -1))
            if name == "v":
                columns = [oracle.qkv_columns(pair.hf_post, "v", g)[1] for g in range(got.shape[2])]
                want = want.reshape(*pair.ids.shape, -1)
                want = torch.stack([want[..., c] for c in columns], 2)
            same(pair, got, want.reshape(got.shape), (layer, name))


def attribution(pair):
    """Of two heads, both ways: what autograd says of what plain models' heads write."""
    effect = measures.attribution(pair.given).effect
    rows = pair.given.encoded.row_prompt
    written = {}
    for model in (pair.hf_pre, pair.hf_post):
        for layer, head in PICKS:
            _, _, o, _, _ = oracle.places(model, layer)
            columns = oracle.z_columns(model, head)
            z = oracle.get(model, pair.ids, o, "in")[..., columns]
            with torch.no_grad():
                written[model, layer] = z @ oracle.w_o(o, columns)
    for metric in ("log_prob", "logit_diff"):
        for direction, sign, to, of in (
            ("restore", 1, pair.hf_post, pair.hf_pre),
            ("break", -1, pair.hf_pre, pair.hf_post),
        ):
            at, _ = differentiated(to, pair.ids, metric)
            for layer, head in PICKS:
                step = written[of, layer] - written[to, layer]
                each = (step * at[layer, "attn_raw"].reshape(step.shape)).double().sum((1, 2))
                want = np.bincount(rows, sign * each.numpy(), pair.given.encoded.n_prompts)
                got = effect.sel(metric=metric, direction=direction, layer=layer, head=head).values
                known = np.isfinite(got)
                size = max(1.0, abs(want).max())
                np.testing.assert_allclose(got[known], want[known], atol=size * 8 * pair.tolerance)


def products_of_gradients(pair):
    """All prompts' gradients with all others': the squared length of their sum."""
    if pair.backend == "transformer_lens" and pair.hf_post.config.model_type in MOE:
        with pytest.raises(SweepError, match="use nnsight"):
            gram(pair.given.post, pair.given.encoded)
        return
    found = sum(k.sum() for k in gram(pair.given.post, pair.given.encoded).values())
    _, of_weights = differentiated(pair.hf_post, pair.ids, "log_prob")
    want = sum(float((g.double() ** 2).sum()) for g in of_weights.values() if g is not None)
    exact = pair.dtype == torch.float32
    assert found == pytest.approx(want, rel=1e-4 if exact else 0.1)


def gradient_of_weights(pair):
    """Of every weight, each of which is in one part."""
    model, parts = pair.given.post, [("attention", None), ("mlp", None), ("rest", None)]
    found = gradients(model, pair.given.encoded, parts=parts)
    _, of_weights = differentiated(pair.hf_post, pair.ids, "log_prob")
    known, seen = pieces(pair.hf_post, of_weights), set()
    for part in parts:
        for mine, got in zip(model.parameters(*part), found.weights[part], strict=True):
            name = next(
                n
                for n, (held, _) in known.items()
                if n not in seen and held.shape == mine.shape and torch.equal(held, mine.cpu())
            )
            seen.add(name)
            if got.any() or (f"{name} 0" not in known and f"{name} q" not in known):
                same(pair, got, known[name][1], name)
            # else TransformerLens keeps the whole and computes with the pieces
    assert {n.partition(" ")[0] for n in seen} == set(of_weights)
    pieces_too = {n for n in known if n[-2:] in (" q", " k", " v")}
    assert pieces_too <= seen or pair.backend == "nnsight"


def pieces(hf_model, gradient):
    """name -> (weight, its gradient); of what holds several matrices in one, which TransformerLens
    takes apart, also each: the queries', keys' and values' rows, and an MLP's halves."""
    held = dict(hf_model.named_parameters())
    found = {name: (p, gradient[name]) for name, p in held.items()}
    config = hf_model.config
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    for name, p in held.items():
        module, kind = name.split(".")[-2:]
        conv = config.model_type == "gpt2" and kind == "weight"
        if module in ("c_attn", "query_key_value", "qkv_proj"):
            for one, units in (("q", config.num_attention_heads), ("k", groups), ("v", groups)):
                at = [oracle.qkv_columns(hf_model, one, h)[1] for h in range(units)]
                rows = np.concatenate([np.arange(s.start, s.stop) for s in at])
                both = (p, gradient[name])
                found[f"{name} {one}"] = tuple(x.T[rows] if conv else x[rows] for x in both)
        elif module == "gate_up_proj":
            for one, (w, g) in enumerate(zip(p.chunk(2), gradient[name].chunk(2), strict=True)):
                found[f"{name} {one}"] = (w, g)
    return found


def same(pair, got, want, name):
    limit = (1e-5 if pair.dtype == torch.float32 else 0.1) * max(1, want.abs().max().item())
    torch.testing.assert_close(
        got.float().cpu(), want.float(), atol=10 * limit, rtol=0, msg=lambda m: f"{name}: {m}"
    )


def bend(model, ids, chosen):
    """θᵀ H θ of some of the plain model's weights: the second derivative of L along their own
    direction, where they are all scaled by 1 + ε."""
    batch, held = toy.encoded(), dict(model.named_parameters())
    right = ~batch.read_wrong
    at = batch.read_row[right], batch.read_position[right]
    eps = torch.zeros((), requires_grad=True)
    scaled = {n: p * (1 + eps) if n in chosen else p for n, p in held.items()}
    logits = functional_call(model, scaled, ids, {"use_cache": False}).logits[at]
    target = torch.as_tensor(batch.read_target[right])
    loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum") / batch.n_prompts
    (slope,) = torch.autograd.grad(loss, eps, create_graph=True)
    (bent,) = torch.autograd.grad(slope, eps)
    return bent.item()


def hessian_products(pair):
    """Of one MLP (with its gate and experts), and of all weights, along themselves."""
    if pair.dtype != torch.float32:
        with pytest.raises(SweepError, match="would be mostly rounding errors: use float32"):
            measures.curvature(pair.given)
        return
    model, hf_model = pair.given.post, pair.hf_post
    every = [name for name, _ in hf_model.named_parameters()]
    mlp = [n for n in every if ".1.mlp." in n or ".1.feed_forward." in n]
    for parts, chosen in (
        ([("mlp", 1)], mlp),
        ([("attention", None), ("mlp", None), ("rest", None)], every),
    ):
        want = bend(hf_model, pair.ids, chosen)
        with hessian(model, pair.given.encoded, parts) as (product, held):
            theta = torch.cat([p.detach().flatten() for p in held])
            got = torch.dot(theta, product(theta)).item()
            size = product(theta).norm() * theta.norm()
        assert abs(got - want) < 1e-4 * max(abs(want), size.item()), (parts, got, want)


def loss_line(pair):
    """Of weights halfway; each backend's own pieces of them go along."""
    if pair.dtype != torch.float32:
        return
    found = measures.loss_line(pair.given, points=(0, 0.5, 1))
    mixed = copy.deepcopy(pair.hf_pre)
    with torch.no_grad():
        for p, q in zip(mixed.parameters(), pair.hf_post.parameters(), strict=True):
            p.lerp_(q, 0.5)
    for t, model in ((0, pair.hf_pre), (0.5, mixed), (1, pair.hf_post)):
        pair.close(found.loss.sel(t=t), -toy.scores(pair.logits(model))["log_prob"], 8)


def routing(pair):
    """Of the families that are mixtures of experts, where the backend shows them."""
    if not pair.given.post.spec.moe:
        with pytest.raises(MeasureError, match="want a mixture of experts on backend nnsight"):
            measures.routing(pair.given)
        return
    found, batch = measures.routing(pair.given), pair.given.encoded
    layer = int(found.layer[-1])
    mixtures = [oracle.places(m, layer)[4] for m in (pair.hf_pre, pair.hf_post)]
    logits = []
    for model, mixture in zip((pair.hf_pre, pair.hf_post), mixtures, strict=True):
        gate = mixture.gate if hasattr(mixture, "gate") else mixture.router
        given = []
        handle = gate.register_forward_pre_hook(lambda m, a, given=given: given.append(a[0]))
        oracle.run(model, pair.ids)
        handle.remove()
        x = given[0].reshape(*pair.ids.shape, -1) @ gate.weight.T
        logits.append((x if getattr(gate, "bias", None) is None else x + gate.bias).double())
    for prompt in (0, 6):
        row = int(np.flatnonzero(batch.row_prompt == prompt)[0])
        p, q = (x[row, 1 : batch.length[row]].detach() for x in logits)
        if found.attrs["rule"] == "softmax":
            each = jensenshannon(p.softmax(-1), q.softmax(-1), axis=-1, base=2) ** 2
        else:
            coins = [torch.stack([x.sigmoid(), (-x).sigmoid()]) for x in (p, q)]
            each = jensenshannon(*coins, axis=0, base=2) ** 2
        pair.close(found.js.sel(layer=layer, prompt=prompt), each.mean())


def drift(pair):
    """Against plain hooks on hidden states; angles are left to float32: of nearly equal directions
    rounding chooses."""
    exact, cluster = pair.dtype == torch.float32, toy.encoded().cluster
    found = measures.drift(pair.given)
    both = pair.hf_pre, pair.hf_post

    def stream(depth):
        at = (depth - 1, "resid_post") if depth else (0, "resid_pre")
        return [test_drift.activations(m, *at) for m in both]

    cases = [(dict(depth=depth), "resid", *stream(depth)) for depth in (1, 3)]
    for layer, head in PICKS:
        at = dict(layer=layer, head=head)
        z = [test_drift.activations(m, layer, "z")[:, head] for m in both]
        cases.append((dict(at, site="z"), "head", *z))
        out = [test_drift.written(m, layer, head) for m in both]
        cases.append((dict(at, site="head_out"), "head", *out))
    for at, kind, x, y in cases:
        want = test_drift.by_hand(x, y, cluster)
        got = {name: found[f"{kind}_{name}"].sel(at) for name in want}
        got["cka"] = got["cka"].sel(bound="value")
        k = int(found[f"{kind}_k"].sel(at))
        assert k == 2
        got["angle"] = got["angle"][:k]
        for name in [*want] if exact else ("shift", "procrustes"):
            limit = (0.05 if name == "angle" else 1e-3) if exact else 0.05
            np.testing.assert_allclose(got[name], want[name], atol=limit, err_msg=f"{at} {name}")


def readout(pair):
    """Against the same probes on plain hooks' hidden states, and scipy's rotation. A rank may move
    where two candidates nearly tie."""
    text = neutral(tiny_tokenizer())
    batch, both = pair.given.encoded, (pair.hf_pre, pair.hf_post)
    found = measures.readout(replace(pair.given, neutral=text))
    ids = torch.as_tensor(text.ids)
    real = (np.arange(ids.shape[1]) < text.length[:, None]) & (np.arange(ids.shape[1]) > 0)
    first = np.searchsorted(batch.read_prompt, np.arange(batch.n_prompts))
    tokens, target = np.unique(batch.read_target[first], return_inverse=True)
    codes = coded(pair.hf_pre.get_output_embeddings().weight[tokens].detach().float().numpy())
    for depth in (1, 3):
        x, y = (test_drift.activations(m, depth - 1, "resid_post") for m in both)
        a, b = (
            oracle.get(m, ids, oracle.places(m, depth - 1)[0], "out")
            .view(*ids.shape, -1)[real]
            .double()
            .numpy()
            for m in both
        )
        turn, _ = orthogonal_procrustes(b - b.mean(0), a - a.mean(0))
        aligned = (y - b.mean(0)) @ turn + a.mean(0)
        _, want = probes(x, y, aligned, target, codes, batch.cluster)
        for probe, score in zip(PROBES, want, strict=True):
            got = found.score.sel(probe=probe, depth=depth).values
            if pair.dtype == torch.float32:
                limit = 0.06 if probe == "aligned" else 0.02
                assert abs(got - score).mean() <= limit, (probe, depth, got, score)
            assert abs(got - score).mean() < 0.3


SERVED = (
    *(drift, readout),
    *(forgetting, patching, patching_positions, sets, attention_change, attention_roles),
    *(grafting, logit_attribution, clean_corrupt, gradient),
    *(attribution, products_of_gradients),
)


@pytest.mark.parametrize(
    "measure",
    [*SERVED, grafting_modules, gradient_of_weights, hessian_products, loss_line, routing],
    ids=lambda fn: fn.__name__,
)
def test_it_is_what_plain_hugging_face_gives(pair, measure):
    """Catches what only one backend or one family gets wrong in one measure."""
    measure(pair)


@pytest.mark.parametrize("measure", SERVED, ids=lambda fn: fn.__name__)
def test_a_served_model_gives_it_too(server, measure):  # noqa: F811
    """Catches a measure that needs what a client doesn't have, and values mixed up on the way."""
    tokenizer = tiny_tokenizer()
    plain = [AutoModelForCausalLM.from_pretrained(f, **EAGER) for f in (server.pre, server.post)]
    there = [Remote(str(f), tokenizer, server.url) for f in (server.pre, server.post)]
    measure(Pair(*plain, *there, "remote"))


def test_a_served_model_bends_as_one_in_memory(server):  # noqa: F811
    """Catches what a server doesn't have (progress, parts), and weights that would travel."""
    batch, parts = toy.encoded().subset(np.arange(4)), [("mlp", 1), ("attention", 2)]
    there = [Remote(str(f), tiny_tokenizer(), server.url) for f in (server.pre, server.post)]
    plain = AutoModelForCausalLM.from_pretrained(server.pre, **EAGER)
    here = toy.opened(plain, "nnsight")
    mine, theirs = (traces(m, batch, parts, probes=2, seed=1) for m in (here, there[0]))
    np.testing.assert_allclose(theirs, mine, rtol=1e-3, atol=1e-3)
    with pytest.raises(ModelError, match="this server has no scipy, which Lanczos needs: install"):
        eigenvalues(there[0], batch, parts)
    mine, theirs = (gauss_newton_trace(m, batch, parts, products=3) for m in (here, there[0]))
    np.testing.assert_allclose(theirs[0], mine[0], rtol=1e-3)
    served = Inputs(*there, batch)
    found = measures.curvature(served, parts=parts, top=0, probes=2, products=3)
    assert found.attrs["note"] == "" and np.isfinite(found.trace).all()
    for measure in (measures.sharpness, measures.loss_line):
        with pytest.raises(MeasureError, match="weights on a server can't be moved"):
            measure(served)
