"""The loss landscape against dense matrices, explicit Jacobians, mixed models and plain loops, all on
plain Hugging Face models."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM

from mechforget.errors import MeasureError, SweepError
from mechforget.measures import (
    Inputs,
    curvature,
    flattening,
    landscape,
    loss_line,
    loss_plane,
    loss_surface,
    sharpness,
)
from mechforget.measures.loss_surface import barrier, filter_normalised
from mechforget.sweeps import curvature as bending
from mechforget.sweeps.curvature import (
    Eigenvalues,
    eigenvalues,
    gauss_newton,
    gauss_newton_trace,
    traces,
)
from mechforget.tasks.encoded import Encoded
from tests.measures import toy
from tests.tiny import tiny_model

BACKENDS = ("transformer_lens", "nnsight")
CLOSE = 1e-5  # of the largest entry: what is computed in float32 on the way
EVERY = [(p, i) for i in range(2) for p in ("attention", "mlp")] + [("rest", None)]


@cache
def small(seed=0):
    """876 weights in double precision (but for norms and softmax, which are in float32 in this
    family): a Hessian that can be written down."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=4,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double()
        for weight in model.parameters():
            weight.data.mul_(8 if weight.dim() > 1 else 1)
    return model.eval().requires_grad_(False)


@cache
def batch():
    """Four prompts, one with a wrong answer in a row of its own; clusters of one and two."""
    ids = np.random.default_rng(0).integers(1, 16, (5, 6))
    ids[1, 4:] = 0
    return Encoded(
        ids=ids,
        length=np.array([6, 4, 6, 6, 6]),
        row_prompt=np.array([0, 1, 2, 2, 3]),
        prompt_length=np.array([5, 4, 5, 5, 6]),
        read_row=np.array([0, 0, 1, 2, 2, 3, 3, 4]),
        read_position=np.array([4, 5, 3, 4, 5, 4, 5, 5]),
        read_target=np.array([3, 4, 5, 6, 7, 9, 10, 11]),
        read_prompt=np.array([0, 0, 1, 2, 2, 2, 2, 3]),
        read_wrong=np.array([0, 0, 0, 0, 0, 1, 1, 0], bool),
        cluster=np.array([0, 1, 1, 2]),
    )


def logits_of(model, weights):
    """name -> weight: logits [right read, vocabulary], on the plain model."""
    e = batch()
    right = ~e.read_wrong
    held = dict(model.named_parameters()) | weights
    out = functional_call(model, held, torch.as_tensor(e.ids), {"use_cache": False}).logits
    return out[e.read_row[right], e.read_position[right]]


def loss_of(model, weights):
    logits, total = logits_of(model, weights), 0
    for row, target in zip(logits, batch().read_target[~batch().read_wrong], strict=True):
        total = total + torch.logsumexp(row, 0) - row[target]
    return total / 4


def names(parts):
    """The plain model's names of these parts' weights, in the package's order."""
    every = [name for name, _ in small().named_parameters()]
    found = []
    for part, layer in parts:
        if part == "rest":
            found += [n for n in every if "norm" in n or "embed" in n or "lm_head" in n]
        else:
            inside = {"attention": "self_attn", "mlp": "mlp"}[part]
            found += [n for n in every if f"layers.{layer}.{inside}." in n]
    return found


def as_vector(model, parts):
    """(θ as one vector, a function from such a vector to name -> weight)."""
    held = dict(model.named_parameters())
    chosen = names(parts)

    def back(v):
        pieces = v.split([held[n].numel() for n in chosen])
        return {n: x.view(held[n].shape) for n, x in zip(chosen, pieces, strict=True)}

    return torch.cat([held[n].flatten() for n in chosen]), back


@cache
def dense(seed=0):
    """The Hessian of all weights, by torch's own double loop."""
    model = small(seed)
    theta, back = as_vector(model, EVERY)
    whole = torch.autograd.functional.hessian(
        lambda v: loss_of(model, back(v)), theta, vectorize=True
    )
    return whole.numpy()


@cache
def dense_gauss_newton(seed=0):
    """From the explicit Jacobian of the logits."""
    model = small(seed)
    theta, back = as_vector(model, EVERY)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: logits_of(model, back(v)), theta, vectorize=True
    )
    p = logits_of(model, back(theta)).softmax(-1)
    bend = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return (torch.einsum("rvi,rvw,rwj->ij", jacobian, bend, jacobian) / 4).numpy()


def opened(seed=0, backend="nnsight"):
    return toy.opened(small(seed), backend)


@cache
def given():
    return Inputs(opened(0), opened(1), batch())


def blocks():
    """part -> its place in the vector of all weights."""
    held = dict(small().named_parameters())
    ends = np.cumsum([sum(held[n].numel() for n in names([part])) for part in EVERY])
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def one_hot(monkeypatch):
    """Probes that are the axes in order: a trace that is no estimate."""
    turn = iter(range(10**6))

    def axis(held, generator):
        v = held[0].new_zeros(sum(p.numel() for p in held))
        v[next(turn)] = 1
        return v

    monkeypatch.setattr(bending, "_rademacher", axis)


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_and_eigenvalues_are_those_of_the_dense_hessian(backend):
    """Catches a wrong scale (prompts, not reads or rows), the wrong answer's tokens in L, weights
    in another order, a largest eigenvalue by size instead of sign, too early an end."""
    model, want = opened(0, backend), dense()
    v = torch.randn(len(want), generator=torch.Generator().manual_seed(1)).double()
    with bending.hessian(model, batch(), EVERY) as (product, held):
        assert sum(p.numel() for p in held) == len(want)
        np.testing.assert_allclose(product(v), want @ v.numpy(), atol=CLOSE * abs(want).max())
        np.testing.assert_allclose(product(2 * v), 2 * product(v), atol=CLOSE)
    found = eigenvalues(model, batch(), EVERY, top=3, tolerance=1e-6, products=2000)
    top = np.linalg.eigvalsh(want)[::-1][:3]
    np.testing.assert_allclose(found.value, top, rtol=CLOSE)
    assert (found.residual < 2e-6 * top).all() and found.products >= 20
    coarse = eigenvalues(model, batch(), EVERY, top=2)
    assert (abs(coarse.value - top[:2]) <= coarse.residual + CLOSE * top[0]).all()
    assert all(not p.requires_grad for p in model.module.parameters())


def test_a_modules_hessian_is_its_block_of_the_whole():
    """Catches a part that is taken at the wrong place, or cross terms in its trace."""
    want = dense()
    for part, block in zip(EVERY, blocks(), strict=True):
        mine = want[block, block]
        v = torch.linspace(-1, 1, len(mine)).double()
        with bending.hessian(given().pre, batch(), [part]) as (product, _):
            np.testing.assert_allclose(product(v), mine @ v.numpy(), atol=CLOSE * abs(want).max())
    top = eigenvalues(given().pre, batch(), [("mlp", 0), ("rest", None)], tolerance=1e-6)
    both = np.r_[blocks()[1], blocks()[4]]
    np.testing.assert_allclose(
        top.value[0], np.linalg.eigvalsh(want[np.ix_(both, both)])[-1], rtol=CLOSE
    )


def test_traces_are_exact_with_axes_as_probes(monkeypatch):
    """Catches cross terms, a forgotten weight, and one that two modules share."""
    one_hot(monkeypatch)
    want, some = np.diag(dense()), (1, 3)  # the MLPs
    at = [blocks()[i] for i in some]
    sizes = [b.stop - b.start for b in at]
    found = traces(given().pre, batch(), [EVERY[i] for i in some], probes=sum(sizes))
    for module, block, start in zip(found, at, (0, sizes[0]), strict=True):
        each = np.zeros(sum(sizes))
        each[start : start + len(want[block])] = want[block]
        np.testing.assert_allclose(module, each, atol=CLOSE * abs(dense()).max())


def test_random_probes_are_signs_and_their_errors_are_honest():
    """Catches Gaussian or 0/1 probes, equal ones, and a spread that isn't the estimator's own."""
    found, want = traces(given().pre, batch(), EVERY, probes=60), dense()
    generator = torch.Generator().manual_seed(0)
    held = list(given().pre.module.parameters())
    probes = np.stack([bending._rademacher(held, generator).numpy() for _ in range(60)])
    assert set(probes.ravel().tolist()) == {-1.0, 1.0} and abs(probes.mean()) < 0.02
    for module, block in zip(found, blocks(), strict=True):
        each = (probes[:, block] * (probes @ want)[:, block]).sum(1)
        np.testing.assert_allclose(module, each, rtol=1e-4, atol=1e-4)
        error = module.std(ddof=1) / 60**0.5
        assert abs(module.mean() - np.trace(want[block, block])) < 4 * error
    off = want - np.diag(np.diag(want))
    exact = (2 * (off**2).sum()) ** 0.5  # of a Rademacher probe
    assert abs(found.sum(0).std(ddof=1) / exact - 1) < 0.4


@pytest.mark.parametrize("backend", BACKENDS)
def test_gauss_newton_is_that_of_explicit_jacobians(backend):
    """Catches a transposed or unscaled product, and a Hutch++ that counts its basis twice."""
    model, want = opened(0, backend), dense_gauss_newton()
    v = torch.randn(len(want), generator=torch.Generator().manual_seed(1)).double()
    with gauss_newton(model, batch(), EVERY) as (product, _):
        np.testing.assert_allclose(product(v), want @ v.numpy(), atol=CLOSE * abs(want).max())
    if backend == "transformer_lens":
        return
    assert np.linalg.matrix_rank(want, tol=1e-5 * np.trace(want)) < 100
    within, left = gauss_newton_trace(model, batch(), EVERY, products=300)
    np.testing.assert_allclose(
        within, np.trace(want), rtol=1e-4
    )  # its basis holds all of the range
    assert abs(left).max() < 1e-4 * within


def test_hutch_plus_plus_is_right_on_average():
    """Catches a basis that isn't orthonormal, and a rest that isn't projected."""
    want = dense_gauss_newton()
    found = []
    for seed in range(25):
        within, left = gauss_newton_trace(given().pre, batch(), EVERY, products=9, seed=seed)
        found.append(within + left.mean())
    error = np.std(found, ddof=1)
    assert abs(np.mean(found) - np.trace(want)) < 4 * error / 5


def test_curvature_names_what_it_found():
    """Catches pre and post swapped, other probes at post, errors of the wrong samples."""
    found = curvature(given(), top=2, probes=8, products=12)
    assert found["sample"].dims == ("at", "module", "probe")
    assert found.module.values.tolist() == [
        "attention.0", "mlp.0", "attention.1", "mlp.1", "rest.all",
    ]  # fmt: skip
    assert found.layer.values.tolist() == [0, 0, 1, 1, -1]
    for seed, at in enumerate(("pre", "post")):
        here, want = found.sel(at=at), np.linalg.eigvalsh(dense(seed))[::-1][:2]
        assert (abs(here.eigenvalue - want) <= here.residual + CLOSE * want[0]).all()
        np.testing.assert_allclose(
            here["sample"], traces(opened(seed), batch(), EVERY, probes=8, seed=0)
        )
        np.testing.assert_allclose(here.trace, here["sample"].sum("module").mean())
        error = here["sample"].sum("module").values.std(ddof=1) / 8**0.5
        np.testing.assert_allclose(here.trace_se, error)
        np.testing.assert_allclose(here.module_trace.sum(), here.trace)
        gap = abs(float(here.gauss_newton) - np.trace(dense_gauss_newton(seed)))
        assert gap < 5 * here.gauss_newton_se + 1e-9
    assert found.converged.all() and found.attrs["note"] == ""
    few = curvature(given(), parts=[("mlp", 1)], prompts=2, top=0, probes=2, products=3)
    assert len(few.chosen) == 2 and few.sizes["module"] == 1 and few.sizes["rank"] == 0
    assert np.isnan(flattening(few).ratio.sel(quantity="eigenvalue")).all()


def test_lanczos_that_did_not_converge_says_so(monkeypatch):
    """Catches a Ritz value that is shown as an eigenvalue."""
    stopped = eigenvalues(given().pre, batch(), EVERY, top=3, tolerance=1e-14, products=1)
    assert np.isnan(stopped.value).any()
    never = lambda *a, **k: Eigenvalues(np.array([np.nan]), np.array([np.nan]), 9)  # noqa: E731
    monkeypatch.setattr(landscape, "eigenvalues", never)
    found = curvature(given(), probes=2, products=3, parts=[("mlp", 0)])
    assert not found.converged.any()
    assert found.attrs["note"] == "Lanczos stopped before 2 of 2 eigenvalues converged"


def test_flattening_is_a_ratio_of_means():
    """Catches a mean of ratios, a ratio to what isn't positive, swapped ends, errors left out."""
    rng = np.random.default_rng(0)
    sample = rng.normal([[[30.0], [10.0]], [[18.0], [2.0]]], 3, (2, 2, 12))
    found = xr.Dataset(
        {
            "sample": (("at", "module", "probe"), sample),
            "trace": ("at", sample.sum(1).mean(-1)),
            "gauss_newton_sample": (("at", "draw"), np.zeros((2, 3))),
            "gauss_newton": ("at", [8.0, 2.0]),
            "gauss_newton_se": ("at", [0.4, 0.0]),
            "eigenvalue": (("at", "rank"), [[10.0], [4.0]]),
            "residual": (("at", "rank"), [[2.0], [1.0]]),
        },
        coords={"at": ["pre", "post"]},
    )
    ratio = flattening(found).ratio
    low, high = ratio.sel(quantity="trace")[1:].values
    whole = sample.sum(1)
    np.testing.assert_allclose(ratio.sel(quantity="trace")[0], whole[1].mean() / whole[0].mean())
    drawn = rng.integers(0, 12, (4000, 12))
    want = np.quantile(whole[1][drawn].mean(1) / whole[0][drawn].mean(1), [0.025, 0.975])
    np.testing.assert_allclose([low, high], want, atol=0.02)
    error = 4.302653 * 0.25 * 0.05  # Student's t of 2 degrees of freedom; 5 % of a quarter
    np.testing.assert_allclose(
        ratio.sel(quantity="gauss_newton"), [0.25, 0.25 - error, 0.25 + error], rtol=1e-5
    )
    np.testing.assert_allclose(ratio.sel(quantity="eigenvalue"), [0.4, 3 / 12, 5 / 8])
    falling = found.assign(trace=-found.trace, eigenvalue=-found.eigenvalue)
    assert np.isnan(flattening(falling).ratio.sel(quantity=["trace", "eigenvalue"])).all()


def test_what_has_no_second_derivative_is_refused():
    """Catches numbers of rounding, and an error from deep within torch."""
    half = Inputs(*(toy.opened(tiny_model().bfloat16()) for _ in range(2)), toy.encoded())
    for measure in (curvature, sharpness, loss_line):
        with pytest.raises(
            SweepError, match="bfloat16 would be mostly rounding errors: use float32"
        ):
            measure(half)
    sdpa = copy.deepcopy(small())
    sdpa.set_attn_implementation("sdpa")
    with pytest.raises(SweepError, match="sdpa attention has no second derivative"):
        curvature(Inputs(opened(), toy.opened(sdpa, "nnsight"), batch()))
    with pytest.raises(SweepError, match="each of them once"):
        traces(given().pre, batch(), [("mlp", 0), ("mlp", None)], probes=1)
    with pytest.raises(SweepError, match=r"takes 8 vectors of them, .* GB, more than 1e-05: want"):
        eigenvalues(given().pre, batch(), EVERY, memory=1e-5)


def test_weights_on_the_disk_are_refused(tmp_path):
    """Catches a landscape of weights that can't be moved."""
    from mechforget import checkpoints, models
    from tests.tiny import save_tiny

    folder = checkpoints.open(str(save_tiny(tmp_path / "pre")))
    there = models.open(folder, models.Loading(backend="nnsight", device="disk"))
    inputs = Inputs(there, there, toy.encoded())
    with pytest.raises(SweepError, match="weights on the disk have no second derivative"):
        curvature(inputs)
    for measure in (sharpness, loss_line):
        with pytest.raises(MeasureError, match="weights on the disk can't be moved"):
            measure(inputs)


def mixed(*terms):
    """A plain model whose weights are a weighted sum of others'."""
    model = copy.deepcopy(terms[0][1])
    with torch.no_grad():
        for p, *others in zip(model.parameters(), *(m.parameters() for _, m in terms), strict=True):
            p.copy_(sum(w * q for (w, _), q in zip(terms, others, strict=True)))
    return model


def plain_losses(model):
    return -toy.plain(model)["log_prob"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_line_is_that_of_mixed_models_and_its_barrier_by_hand(backend):
    """Catches the line walked backwards, a barrier above one end only, prompts out of order, and
    weights that stay moved."""
    hf_pre, hf_post, _ = toy.pair()
    pre, post = (toy.opened(m, backend) for m in (hf_pre, hf_post))
    inputs = Inputs(pre, post, toy.encoded(), memory=2e-3)
    before = [p.clone() for p in pre.module.parameters()]
    found = loss_line(inputs, points=(0, 0.25, 0.5, 1))
    mean = []
    for t in (0, 0.25, 0.5, 1):
        want = plain_losses(mixed((1 - t, hf_pre), (t, hf_post)))
        np.testing.assert_allclose(found.loss.sel(t=t), want, atol=2e-4)
        mean.append(want.mean())
    by_hand = [m - ((1 - t) * mean[0] + t * mean[-1]) for t, m in zip(found.t, mean, strict=True)]
    np.testing.assert_allclose(found.barrier[0], max(by_hand), atol=2e-4)
    assert float(found.barrier_at) == found.t[np.argmax(by_hand)]
    assert found.barrier[1] <= found.barrier[0] <= found.barrier[2] or max(by_hand) == 0
    for p, own in zip(pre.module.parameters(), before, strict=True):
        assert torch.equal(p, own)
    with pytest.raises(MeasureError, match="with 0 and 1 among them"):
        loss_line(inputs, points=(0.1, 1))


def test_a_barrier_in_closed_form():
    """Catches the plain mean of the ends as its base (Frankle's), which sees one where none is."""
    t = np.array([0, 0.5, 1])
    assert barrier(np.array([1.0, 3.0, 2.0]), t) == 1.5
    assert barrier(np.array([0.0, 1.0, 2.0]), t) == 0  # a slope
    assert barrier(np.array([0.0, 0.5, 2.0]), t) == 0  # a valley
    np.testing.assert_array_equal(barrier(np.array([[0, 1, 0], [0, 4, 0]]), t), [1, 4])


def test_the_barriers_interval_resamples_clusters(monkeypatch):
    """Catches prompts of one cluster that are drawn one by one, and a mean over clusters."""
    seen = []
    monkeypatch.setattr(loss_surface, "bounds", lambda f, sizes, seed: seen.append((f, sizes)))
    with pytest.raises(Exception):  # noqa: B017, PT011 (None is no interval)
        loss_line(toy.pair()[2], points=(0, 0.5, 1))
    statistic, sizes = seen[0]
    assert sizes == [10]  # of 14 prompts
    model = mixed((0.5, toy.pair()[0]), (0.5, toy.pair()[1]))
    each = [plain_losses(m) for m in (toy.pair()[0], model, toy.pair()[1])]
    cluster = toy.encoded().cluster
    kinds = np.unique(cluster)
    drawn = np.array([0, 0, 3, 7, 7, 7, 1, 2, 9, 9])
    prompts = np.concatenate([np.flatnonzero(cluster == kinds[c]) for c in drawn])
    a, m, b = (x[prompts].mean() for x in each)
    np.testing.assert_allclose(statistic(drawn), max(0, m - (a + b) / 2), atol=2e-4)


def test_sharpness_is_that_of_a_plain_loop():
    """Catches other draws at post, a direction that isn't normalised filter by filter, moved norms,
    and a step that adds up from one direction to the next."""
    hf_pre, hf_post, _ = toy.pair()
    inputs = Inputs(*(toy.opened(m, "nnsight") for m in (hf_pre, hf_post)), toy.encoded())
    found = sharpness(inputs, directions=3, radius=0.05, seed=7)
    for at, model in (("pre", hf_pre), ("post", hf_post)):
        generator, base = torch.Generator().manual_seed(7), plain_losses(model)
        for direction in range(3):
            moved = copy.deepcopy(model)
            for p in moved.parameters():
                if p.dim() == 1:
                    continue
                for row, step in zip(
                    p.data, torch.randn(p.shape, generator=generator), strict=True
                ):
                    row += 0.05 * row.norm() * step / step.norm()
            want = plain_losses(moved) - base
            np.testing.assert_allclose(found.rise.sel(at=at, direction=direction), want, atol=2e-4)
    mean = found.rise.mean("prompt")
    np.testing.assert_allclose(found.sharpness, mean.mean("direction"))
    np.testing.assert_allclose(found.sharpness_se, mean.std("direction", ddof=1) / 3**0.5)
    again = sharpness(inputs, directions=3, radius=0.05, seed=7)
    assert again.rise.equals(found.rise)  # nothing stayed moved


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "llama"])
def test_a_direction_is_as_long_as_the_filter_it_moves(family):
    """Catches GPT-2's transposed matrices, and an expert that is scaled by all of them."""
    hf_model = tiny_model(family)
    model = toy.opened(hf_model, "nnsight")
    steps = filter_normalised(model, 0.01, torch.Generator().manual_seed(0))
    for (name, p), step in zip(hf_model.named_parameters(), steps, strict=True):
        if p.dim() == 1:
            assert step is None
            continue
        if p.dim() == 3:
            p, step = p.flatten(1), step.flatten(1)
        elif family == "gpt2" and ("attn" in name or "mlp" in name):
            p, step = p.T, step.T
        torch.testing.assert_close(step.norm(dim=1), 0.01 * p.norm(dim=1))


def test_the_plane_is_that_of_mixed_models():
    """Catches axes that are swapped, a direction from the wrong point, a gradient uphill."""
    hf_pre, hf_post, _ = toy.pair()
    hf_third = toy.damaged(hf_pre, seed=9)
    pre, post, third = (toy.opened(m, "nnsight") for m in (hf_pre, hf_post, hf_third))
    inputs = Inputs(pre, post, toy.encoded())
    found = loss_plane(inputs, third=third, grid=(0, 0.5, 1))
    for a, b in ((0, 0), (1, 0), (0, 1), (0.5, 1)):
        want = plain_losses(mixed((1 - a - b, hf_pre), (a, hf_post), (b, hf_third)))
        np.testing.assert_allclose(found.loss.sel(a=a, b=b), want, atol=5e-4)
    assert found.attrs["spanned_by"] == "a: post − pre; b: third − pre"

    def vector(m):
        return torch.cat([p.flatten() for p in m.parameters()]).double()

    x, y = vector(hf_post) - vector(hf_pre), vector(hf_third) - vector(hf_pre)
    np.testing.assert_allclose(found.attrs["cosine"], x @ y / x.norm() / y.norm(), rtol=1e-5)

    inputs = Inputs(given().post, given().pre, batch())
    downhill = loss_plane(inputs, new=batch(), grid=(0, 1e-4))
    theta, back = as_vector(small(1), EVERY)
    theta.requires_grad_(True)
    (slope,) = torch.autograd.grad(loss_of(small(1), back(theta)), theta)
    length = (as_vector(small(0), EVERY)[0] - theta).norm()
    fall = downhill.loss.mean("prompt").sel(a=0).diff("b").item()
    step = 1e-4 * length * slope / slope.norm()
    want = loss_of(small(1), back(theta - step)) - loss_of(small(1), back(theta))
    np.testing.assert_allclose(fall, want.item(), rtol=1e-2)
    assert fall < 0
    for wrong in ({}, {"third": third, "new": batch()}):
        with pytest.raises(MeasureError, match="want third"):
            loss_plane(inputs, **wrong)


def test_a_plane_is_the_same_on_both_backends():
    """Would catch: GPT-2's q, k and v counted twice in the length of a direction, as themselves and
    in the fused matrix that TransformerLens keeps beside them; columns cut from it unnoticed."""
    hf_pre, encoded = tiny_model("gpt2"), toy.encoded().subset(np.arange(4))
    hf_post = copy.deepcopy(hf_pre)
    with torch.no_grad():  # attention alone moves, so that it is all of the length
        for block in hf_post.transformer.h:
            block.attn.c_attn.weight.add_(0.1 * torch.randn(block.attn.c_attn.weight.shape))
    planes = [
        loss_plane(
            Inputs(*(toy.opened(m, backend) for m in (hf_pre, hf_post)), encoded),
            new=encoded,
            grid=(0, 1),
        )
        for backend in ("nnsight", "transformer_lens")
    ]
    np.testing.assert_allclose(planes[0].loss, planes[1].loss, atol=1e-4)
    assert planes[0].cosine == pytest.approx(planes[1].cosine, abs=1e-5)
