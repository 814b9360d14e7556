"""The growing batch against one plain Hugging Face forward per variant."""

import copy

import numpy as np
import pytest
import torch

from mechforget.models.opening import proven
from mechforget.models.sites import ACTIVATIONS, EXPERT, Edit
from mechforget.models.transformer_lens import TransformerLens
from mechforget.sweeps.donor import Donor, capture, points
from mechforget.sweeps.plan import graft, heads, single
from mechforget.sweeps.run import sweep
from mechforget.tasks.encoded import Encoded, grouped, packed
from tests import oracle
from tests.tiny import FAMILIES, tiny_model

BACKENDS = ("transformer_lens", "nnsight")
MIXTURES = ("mixtral", "qwen3_moe", "olmoe", "llama4_text", "gpt_oss", "deepseek_v3")


def encoded(seed=0, rows=3, length=9):
    """Rows of one length; the second begins like the first, the third like both, but less."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, 400, (rows, length))
    ids[1:3, :2], ids[1, :4] = ids[0, :2], ids[0, :4]
    return Encoded(
        ids=ids,
        length=np.full(rows, length),
        row_prompt=np.arange(rows),
        prompt_length=np.full(rows, length),
        read_row=np.repeat(np.arange(rows), 2),
        read_position=np.tile([length - 3, length - 1], rows),
        read_target=rng.integers(3, 400, 2 * rows),
        read_prompt=np.repeat(np.arange(rows), 2),
        read_wrong=np.zeros(2 * rows, bool),
        cluster=np.arange(rows),
    )


def together(*batches):
    """The same prompts in one packed row."""
    groups = grouped(*batches, nodes=99)
    assert len(groups) == 1 and groups[0].width < batches[0].ids.size
    found, order = packed(*batches, groups=groups)
    assert order.tolist() == list(range(len(order)))
    return found


def opened(hf_model, backend="transformer_lens"):
    """The package's model around a copy, so that the oracle keeps an unwrapped one."""
    return proven(copy.deepcopy(hf_model), backend)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def plain(request):
    hf_post, hf_pre = (tiny_model(request.param, seed) for seed in (0, 1))
    oracle.share_qk_norms(hf_post, hf_pre)
    return hf_post, hf_pre


@pytest.fixture(scope="module", params=BACKENDS)
def family(request, plain):
    return *plain, *(opened(hf_model, request.param) for hf_model in plain)


def check(logits, batch, log_prob, top):
    expected = oracle.log_probs(logits, batch.read_row, batch.read_position, batch.read_target)
    # Float32 through three layers, in another order of summation: 1e-5 of the logits' scale.
    scale = logits.abs().max().item()
    np.testing.assert_allclose(log_prob, expected, atol=1e-5 * max(scale, 1))
    best = logits.argmax(-1)[batch.read_row, batch.read_position].numpy()
    np.testing.assert_array_equal(top, best == batch.read_target)


def picks(spec, site, offset):
    """Some variants of a site: every layer, each time another head (or group), fewer where a site
    has no heads. All of them ran in one batch; these are compared."""
    units = spec.units(site)
    if not units:
        layers = spec.at(site)
        return [(layer, None) for layer in {layers[offset % len(layers)], layers[-1]}]
    return [(layer, (layer + offset) % units) for layer in spec.at(site)]


def with_pattern(hf_post, hf_pre, ids, other, layer, head):
    """Logits with one head's attention weights from the donor: its z is them times post's own v."""
    with torch.no_grad():
        weights = hf_pre(other, output_attentions=True, use_cache=False).attentions[layer][:, head]
    _, attention, o, _, _ = oracle.places(hf_post, layer)
    config = hf_post.config
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    group = head * groups // config.num_attention_heads
    module, columns = oracle.qkv_columns(hf_post, "v", group)
    v = oracle.get(hf_post, ids, getattr(attention, module), "out").reshape(*ids.shape, -1)
    z = weights @ v[..., columns]

    def swap(t):
        t = t.clone()
        t[..., oracle.z_columns(hf_post, head)] = z
        return t

    return oracle.run(hf_post, ids, [(o, "in", swap)])


def with_experts(hf_post, hf_pre, ids, other, layer, expert):
    """Logits with the donor's routing (expert: None), or with what one expert adds from it."""
    mine, theirs = (oracle.experts(hf_model, layer) for hf_model in (hf_post, hf_pre))
    if expert is None:
        return oracle.routed(hf_post, ids, mine, oracle.routing(hf_pre, other, theirs))
    change = oracle.added(hf_pre, other, theirs, expert) - oracle.added(hf_post, ids, mine, expert)
    return oracle.shifted(hf_post, ids, mine, change)


def test_every_site_of_every_family_equals_plain_hooks(family):
    """Catches a wrong hook, head order, group, norm, slot, layer offset, or read position."""
    hf_post, hf_pre, post, pre = family
    batch, other = encoded(0), torch.as_tensor(encoded(7).ids)
    ids = torch.as_tensor(batch.ids)
    both = [(batch, encoded(7)), together(batch, encoded(7))]
    missing = {"resid_mid"} if post.parallel else set()
    if isinstance(post, TransformerLens):
        missing |= {"pattern"} if post.family == "llama4_text" else set()
        missing |= set(EXPERT)
    elif post.family not in MIXTURES:
        missing |= set(EXPERT)
    assert {s for s in ACTIVATIONS if s not in post.spec.sites} == missing
    base = oracle.run(hf_post, ids)
    for offset, site in enumerate(s for s in ACTIVATIONS if s not in missing):
        variants = single(post.spec, site)
        found = [sweep(post, b, Donor.of(pre, o, variants), variants) for b, o in both]
        for log_prob, top in found:
            check(base, batch, log_prob[0], top[0])
        for layer, head in picks(post.spec, site, offset):
            at = 1 + variants.index((Edit(layer, site, head),))
            if site in EXPERT:
                want = with_experts(hf_post, hf_pre, ids, other, layer, head)
            elif site == "pattern":
                want = with_pattern(hf_post, hf_pre, ids, other, layer, head)
            else:
                want = oracle.patched(hf_post, hf_pre, ids, other, layer, site, head)
            for log_prob, top in found:
                check(want, batch, log_prob[at], top[at])


def test_grafts_of_every_family_equal_weight_surgery(family):
    """Catches a wrong weight slice, bias, norm, GQA group, or a graft that reads pre's stream."""
    hf_post, hf_pre, post, pre = family
    batch = encoded(0)
    matrices = ("W_Q", "W_K", "W_V", "W_O", "all")
    cases = [(layer, h, m) for layer, h in ((0, 3), (2, 0)) for m in matrices] + [(1, 2, "all")]
    variants = [graft(post.spec, *case) for case in cases]
    found = [sweep(post, b, Donor(pre, {}), variants) for b in (batch, *together(batch))]
    for at, (layer, head, matrix) in enumerate(cases, start=1):
        mixed = oracle.grafted(
            hf_post, hf_pre, layer, head, matrix[-1].lower() if matrix != "all" else "all"
        )
        want = oracle.run(mixed, torch.as_tensor(batch.ids))
        for log_prob, top in found:
            check(want, batch, log_prob[at], top[at])


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
def test_a_shared_query_norm_goes_with_the_query_weights(name):
    """Catches a graft of W_Q that forgets q_norm: with all heads grafted, W_Q and q_norm are pre's."""
    hf_post, hf_pre = tiny_model(name, 0), tiny_model(name, 1)
    batch = encoded(0)
    post, pre = opened(hf_post), opened(hf_pre)
    for matrix, weight in (("W_Q", "q"), ("W_K", "k")):
        variant = tuple(Edit(1, matrix, u) for u in range(post.spec.units(matrix)))
        log_prob, top = sweep(post, batch, Donor(pre, {}), [variant])
        mixed = tiny_model(name, 0)
        for part in (f"{weight}_proj", f"{weight}_norm"):
            source = getattr(oracle.places(hf_pre, 1)[1], part)
            getattr(oracle.places(mixed, 1)[1], part).load_state_dict(source.state_dict())
        check(oracle.run(mixed, torch.as_tensor(batch.ids)), batch, log_prob[1], top[1])


def test_one_position_and_several_heads_at_once():
    """Catches a position that leaks to others, in packed rows too, where it is several nodes; and
    sets whose later layers see the base's stream."""
    hf_post, hf_pre = tiny_model("llama", 0), tiny_model("llama", 1)
    post, pre, batch = opened(hf_post), opened(hf_pre), encoded(0)
    ids = torch.as_tensor(batch.ids)
    for site in ("z", "head_out", "resid_pre", "attn_out", "resid_mid"):
        variants = [v for v in single(post.spec, site, positions=(2, 8)) if v[0].layer == 1]
        each = (batch, *together(batch))
        found = [sweep(post, b, Donor.of(pre, b, variants), variants) for b in each]
        for at, (e,) in enumerate(variants, start=1):
            want = oracle.patched(hf_post, hf_pre, ids, ids, 1, site, e.head, e.position)
            for log_prob, top in found:
                check(want, batch, log_prob[at], top[at])
    chosen = [(0, 1), (0, 2), (2, 3)]
    for site in ("z", "head_out"):
        variant = heads(site, chosen)
        donor = Donor(pre, capture(pre, ids, points([variant])))
        log_prob, top = sweep(post, batch, donor, [variant])
        hooks = []
        for layer in (0, 2):
            _, _, o, _, _ = oracle.places(hf_post, layer)
            theirs = oracle.places(hf_pre, layer)[2]
            z = oracle.get(hf_pre, ids, theirs, "in")
            columns = [oracle.z_columns(hf_post, h) for at, h in chosen if at == layer]
            held = {}

            def rewrite(t, columns=columns, z=z, o=o, theirs=theirs, held=held, site=site):
                t, change = t.clone(), 0
                for c in columns:
                    change = (
                        change + z[..., c] @ oracle.w_o(theirs, c) - t[..., c] @ oracle.w_o(o, c)
                    )
                    t[..., c] = z[..., c] if site == "z" else t[..., c]
                held["change"] = change
                return t

            hooks.append((o, "in", rewrite))
            if site == "head_out":
                hooks.append((o, "out", lambda t, held=held: t + held["change"]))
        check(oracle.run(hf_post, ids, hooks), batch, log_prob[1], top[1])


def test_any_split_into_forwards_gives_the_same_numbers_and_a_no_op_is_exactly_nothing():
    """Catches slots mixed up when variants are split, and rounding noise shown as an effect."""
    post, pre = opened(tiny_model("llama", 0)), opened(tiny_model("llama", 1))
    batch = encoded(0)
    ids = torch.as_tensor(batch.ids)
    variants = single(post.spec, "z")[::-1]
    donor = Donor(pre, capture(pre, ids, points(variants)))
    whole = sweep(post, batch, donor, variants)[0]
    for rows in (2, 3, 5):
        part = sweep(post, batch, donor, variants, max_tokens=rows * ids.numel())[0]
        np.testing.assert_allclose(part, whole, atol=1e-5)
    assert (np.abs(whole[1:] - whole[0]).max(1) > 1e-4).all()
    for site in ("z", "head_out", "resid_post", "q", "resid_mid"):
        variants = single(post.spec, site)
        own = Donor(post, capture(post, ids, points(variants)))
        log_prob, _ = sweep(post, batch, own, variants)
        assert (log_prob == log_prob[0]).all()


def test_a_no_op_that_is_run_changes_nothing_either(monkeypatch):
    """Catches a rewrite that writes the right value to the wrong place: idle variants are skipped
    above, here they run."""
    monkeypatch.setattr("mechforget.sweeps.run._same", lambda *_: False)
    post, batch = opened(tiny_model("llama", 0)), encoded(0)
    ids = torch.as_tensor(batch.ids)
    variants = [v for s in ACTIVATIONS if s in post.spec.sites for v in single(post.spec, s)]
    variants += [graft(post.spec, 1, h, "all") for h in range(4)]
    own = Donor(post, capture(post, ids, points(variants)))
    log_prob, _ = sweep(post, batch, own, variants)
    np.testing.assert_allclose(log_prob, np.tile(log_prob[0], (len(variants) + 1, 1)), atol=2e-5)
