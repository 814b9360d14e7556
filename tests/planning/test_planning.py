"""Plans from a config alone: counted as the real model counts, scanned as a run would fail."""

import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, Llama4TextConfig

from mechforget.errors import CheckpointError, MechforgetError, ModelError, StudyError
from mechforget.measures import Inputs
from mechforget.models.opening import proven
from mechforget.models.sites import EXPERT, WEIGHTS, Edit
from mechforget.planning.costs import MACHINES, Setting, cost, fit, sent
from mechforget.planning.forecast import forecast
from mechforget.planning.placeholders import Placeholders
from mechforget.planning.scan import meta_model, placeholders, scan, wrapped
from mechforget.planning.sizes import sizes
from mechforget.study.catalogue import names
from mechforget.study.job import Job
from mechforget.study.jobs import jobs
from mechforget.study.settings import study
from mechforget.sweeps.donor import Donor, capture, points
from mechforget.sweeps.plan import single
from mechforget.sweeps.run import sweep
from tests.test_cli import mechforget
from tests.tiny import FAMILIES, save_tiny, tiny_model


def folder(path, family="llama", **changes):
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **changes})
    path.mkdir(exist_ok=True)
    config.save_pretrained(path)
    return path


def nothing(work: Any) -> Any:
    raise AssertionError("a plan runs no job")


def asked(**given):
    return study(**{"pre": "-", "post": "-", "task": "", "backend": "nnsight", **given})


def planned(path, **given):
    model = meta_model(path, given.get("dtype", "float32"))
    return forecast(model, path, asked(**given), tokens=8, bandwidth=3.0, throughput=200.0)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_scans_all_its_sites_and_is_counted_right(family, tmp_path):
    """Catches a family whose code asks for values, a site that the plan lacks or has too many,
    and parameters that are counted twice (tied ones) or not at all."""
    model = wrapped(meta_model(folder(tmp_path / "m", family), "float32"), "nnsight")
    real = tiny_model(family)
    whole = proven(tiny_model(family), "nnsight")
    assert model.spec.sites == whole.spec.sites
    assert (model.spec.experts, model.spec.moe) == (whole.spec.experts, whole.spec.moe)
    measured = sizes(model)
    assert measured.total == real.num_parameters()
    assert sum(layer.total for layer in measured.layers) + measured.outside == measured.total
    assert (measured.active < measured.total) == bool(model.spec.experts)
    sites = tuple(site for site in model.spec.sites if site not in WEIGHTS)
    everything = asked(sites=sites, measures=names(), new_task="t")
    todo = jobs(everything, model.spec, 4, 8)
    encoded = placeholders(model.spec.d_vocab, 4, 8)
    found = scan(model, encoded, todo)
    variants = [v for site in sites for v in single(whole.spec, site)]
    read = capture(whole, torch.as_tensor(encoded.ids), points(variants))
    for point, t in read.items():
        assert found.values[point] == t.numel() // 4, point


def test_a_wrong_shape_or_layer_fails_in_the_scan(tmp_path):
    """Catches a scan that runs nothing: a model whose third layer is another is not run through."""
    model = wrapped(meta_model(folder(tmp_path / "m"), "float32"), "nnsight")
    encoded = placeholders(model.spec.d_vocab, 4, 8)
    todo = jobs(asked(sites=("head_out",)), model.spec, 4, 8)
    scan(model, encoded, todo)
    o = model.module.model.layers[2].self_attn.o_proj
    o.weight = torch.nn.Parameter(o.weight.new_empty(31, 32), requires_grad=False)
    with pytest.raises(ModelError, match="breaks the scan"):
        scan(model, encoded, todo)
    beyond = Job("patching/z", nothing, 2, ((Edit(3, "z", 0),),), captures=2)
    with pytest.raises(ModelError, match="breaks the scan"):
        scan(model, encoded, [beyond])


def test_what_is_differentiated_is_scanned(tmp_path):
    """Catches gradients that would fail only in the run: an activation that nothing depends on, and
    a module whose gradients don't tell prompts apart. Sweeps don't mind either."""

    def cut(block):
        block.register_forward_hook(lambda module, args, out: out.detach())

    def turned(block):
        plain = block.mlp.forward
        block.mlp.forward = lambda x: plain(x.transpose(0, 1)).transpose(0, 1)

    cases = [
        (cut, "attribution", "nothing that is read depends"),
        (turned, "ledger", "does not tell rows apart"),
        (turned, "interference", "does not tell rows apart"),
    ]
    for spoil, measure, says in cases:
        model = wrapped(meta_model(folder(tmp_path / "m"), "float32"), "nnsight")
        encoded = placeholders(model.spec.d_vocab, 4, 8)
        todo = jobs(asked(measures=(measure,), new_task="t"), model.spec, 4, 8)
        sweeps = jobs(asked(measures=("patching",), sites=("z",)), model.spec, 4, 8)
        scan(model, encoded, todo)
        spoil(model.module.model.layers[1])
        scan(model, encoded, sweeps)
        with pytest.raises(MechforgetError, match=says):
            scan(model, encoded, todo)


def test_what_needs_weights_in_memory_is_planned_where_they_are(tmp_path):
    """Catches a plan that leaves out gradients for a model that some machine holds, one that
    promises them of weights on the disk, and curvature of halves that only the run would refuse."""
    path = folder(tmp_path / "m")
    every = names()
    here = {job.name: job for job in planned(path, measures=every, new_task="t").jobs}
    held = {name for name, job in here.items() if job.held}
    assert held >= {"ledger", "attribution/z", "interference", "landscape/curvature", "origins"}
    streamed = planned(path, measures=every, new_task="t", device="disk")
    assert {need.name for need in streamed.jobs}.isdisjoint(held)
    assert any("ledger left out: needs gradients" in note for note in streamed.notes)
    far = planned(path, measures=every, new_task="t", backend="remote")
    there = {need.name for need in far.jobs}
    assert "attribution/z" in there and "interference" in there
    assert there.isdisjoint({"ledger", "origins", "landscape/curvature", "grafting/modules"})
    with pytest.raises(StudyError, match="ledger: needs gradients"):
        planned(path, measures=("ledger",), device="disk")
    with pytest.raises(StudyError, match=r"landscape: .* float32"):
        planned(path, measures=("landscape",), dtype="bfloat16")


def test_a_site_that_the_model_lacks_is_refused(tmp_path):
    """Catches a study that would fail only in its queue."""
    path = folder(tmp_path / "m")
    for site in EXPERT:
        with pytest.raises(StudyError, match=f"{site}: a llama model does not show it"):
            planned(path, sites=("head_out", site))
    mixture = folder(tmp_path / "moe", "qwen3_moe")
    planned(mixture, sites=("head_out", *EXPERT))
    with pytest.raises(StudyError, match="router"):
        planned(mixture, sites=("head_out", "router"), backend="transformer_lens")


def test_flops_are_what_torch_counts():
    """Catches a factor of two, a forgotten unembedding, and attention that isn't counted."""
    model = proven(tiny_model("llama"), "nnsight")
    encoded = placeholders(model.spec.d_vocab, 3, 8)
    variants = single(model.spec, "z")
    need = Job("patching/z", nothing, 1, tuple(variants), captures=2)
    at = Setting(3, 8, "float32", 1.0, 1, 1)
    other, ids = proven(tiny_model(seed=1), "nnsight"), torch.as_tensor(encoded.ids)
    with FlopCounterMode(display=False) as counted:
        donor = Donor(other, capture(other, ids, points(variants)))
        sweep(model, encoded, donor, variants)
    found = cost(need, model.spec, sizes(model), at, at.memory)
    # Captures unembed one position in all, not one a row; norms and softmax aren't counted.
    np.testing.assert_allclose(found.flops, counted.get_total_flops(), rtol=0.05)
    assert found.forwards == 3


def test_forwards_are_as_many_as_the_engine_makes(monkeypatch):
    """Catches chunks and groups parted otherwise than the run parts them."""
    from mechforget.measures import patching

    pre, post = (proven(tiny_model(seed=s), "nnsight") for s in (0, 1))
    encoded = placeholders(post.spec.d_vocab, 7, 8)
    runs = []
    for model in (pre, post):
        monkeypatch.setattr(model, "run", lambda *a, run=model.run: (runs.append(1), run(*a))[1])
    need = Job("patching/z", nothing, 2, tuple(single(post.spec, "z")), captures=1)
    for memory in (0.0002, 0.001, 0.01):
        runs.clear()
        patching(Inputs(pre, post, encoded, memory=memory), site="z")
        at = Setting(7, 8, "float32", memory, 1, 1)
        assert cost(need, post.spec, sizes(post), at, memory).forwards == len(runs)


def test_the_planned_bytes_are_those_that_a_donor_sends():
    """Catches a plan that counts the z which head_out is made of, or half of what travels."""
    from mechforget.sweeps.donor import donor_values

    model = proven(tiny_model("qwen3_moe"), "nnsight")
    encoded = placeholders(model.spec.d_vocab, 3, 8)
    for site in ("head_out", "z", "k", "mlp_out", "expert_out", "resid_pre"):
        places = range(8) if site == "resid_pre" else (None,)
        variants = single(model.spec, site, places)
        need = Job("patching", nothing, 1, tuple(variants), captures=1)
        read = capture(model, torch.as_tensor(encoded.ids), points(variants))
        values = {point: t.numel() // 3 for point, t in read.items()}
        for half in (False, True):
            at = Setting(3, 8, "float32", 1.0, 1, 1, half)
            values_sent = donor_values(model, encoded, variants, half_precision=half)
            want = sum(value.nbytes for value in values_sent.values())
            assert sent(need, model.spec, at, values) == want, (site, half)


def test_machines_hold_what_fits():
    """Catches a model called resident that isn't, and eight GPUs that hold no more than one."""
    model = proven(tiny_model("llama"), "nnsight")
    need = Job("patching/z", nothing, 2, tuple(single(model.spec, "z")), captures=2)
    at = Setting(3, 8, "float32", 0.5, 3, 200)
    one, eight, disk = (fit(m, need, model.spec, sizes(model), at) for m in MACHINES)
    assert (one.fits, eight.fits, disk.fits) == ("both", "both", "streamed")
    assert eight.layers == 1 and eight.weights * 8 == pytest.approx(one.weights)
    assert disk.seconds > one.seconds


def test_placeholders_leave_real_tensors_alone():
    """Catches a mode that answers for tensors that have values."""
    t = torch.tensor([3.0])
    with Placeholders():
        assert t.item() == 3 and torch.equal(t, t) and t.nonzero().tolist() == [[0]]
        assert t.cpu() is t and torch.where(t > 0)[0].tolist() == [0]
        assert not torch.equal(t.to("meta"), t.to("meta"))


def test_shortcuts_give_the_meta_devices_own_shapes_types_and_strides():
    """Catches a shortcut that would hide a wrong shape, or a view that can't be made."""

    def full(dtype, *shape):
        return torch.empty(shape, dtype=dtype, device="meta")

    f, b = torch.float32, torch.bfloat16
    wide = full(b, 3, 4, 8)
    operands = [
        wide,
        full(f, 3, 4, 8),
        full(f, 4, 8),
        full(b, 8),
        full(f, 3, 4, 1),
        full(f),
        2,
        0.5,
    ]
    operands += [full(f, 3, 8, 4).transpose(1, 2), full(torch.complex64, 4, 8), full(b, 1, 1, 8)]
    operands += [full(torch.int64, 3, 4, 8), full(f, 4, 3, 8).transpose(0, 1), torch.ones(())]
    tensors = [x for x in operands if isinstance(x, torch.Tensor) and x.is_meta]
    calls = [
        (fn, a, x) for fn in (torch.Tensor.add, torch.Tensor.mul) for a in tensors for x in operands
    ]
    calls += [(torch.Tensor.pow, a, 2) for a in tensors] + [(torch.rsqrt, a) for a in tensors]
    whole = [a for a in tensors if a.ndim > 1 and a.is_floating_point()]
    calls += [(torch.Tensor.logsumexp, a, dim) for a in whole for dim in (-1, 0)]
    calls += [(lambda a: a.mean(-1, keepdim=True), a) for a in whole]
    for fn, *given in calls:
        want = fn(*given)
        with Placeholders():
            found = fn(*given)
        same = (want.shape, want.dtype, want.stride(), want.device)
        assert (found.shape, found.dtype, found.stride(), found.device) == same, (fn, given)
    with Placeholders(), pytest.raises(RuntimeError):
        _ = wide * full(f, 5)


def test_shortcuts_have_derivatives():
    """Catches a shortcut that cuts the graph, or loses what is pushed forward."""
    x, w = (torch.empty(s, device="meta", requires_grad=True) for s in ((3, 4, 8), (8,)))
    with Placeholders():
        y = torch.rsqrt((x * w).pow(2).mean(-1, keepdim=True) + x)
        found = torch.autograd.grad(y, [x, w], torch.ones_like(y))
        with torch.no_grad(), forward_ad.dual_level():
            pushed = forward_ad.make_dual(x.detach(), x.detach()) * w.detach()
            tangent = forward_ad.unpack_dual(pushed).tangent
    assert [g.shape for g in found] == [x.shape, w.shape]
    assert tangent is not None and tangent.shape == x.shape


SCOUT = dict(vocab_size=202048)
MAVERICK = dict(
    vocab_size=202048,
    num_local_experts=128,
    interleave_moe_layer_step=2,
    intermediate_size=8192,
    intermediate_size_mlp=16384,
)


@pytest.mark.parametrize(("changes", "billions"), [(SCOUT, 109), (MAVERICK, 400)])
def test_the_largest_configs_are_planned_by_the_command(tmp_path, changes, billions):
    """Catches weights that are allocated, TransformerLens' ten seconds, and a plan that isn't made.
    The published 109 and 400 billion count the vision part, too."""
    Llama4TextConfig(**changes).save_pretrained(tmp_path)
    code = (
        "import re, sys; from mechforget import cli; cli.main();"
        "assert 'transformer_lens' not in sys.modules;"
        # getrusage's peak would be that of the process that was forked, this one
        "print('peak', re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    words = [sys.executable, "-c", code, "plan", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    said = re.search(r"^ *all .* ([\d.]+) B ", done.stdout, re.M)
    assert said and abs(float(said[1]) / billions - 1) < 0.02
    assert "8 x 80 GB" in done.stdout and "streaming from disk" in done.stdout
    assert int(done.stdout.split()[-1]) < 1.5e6  # kB


def test_a_multimodal_config_is_planned_as_its_text_model(tmp_path):
    from transformers import Llama4Config

    text = {**FAMILIES["llama4_text"], "model_type": "llama4_text"}
    config = Llama4Config(text_config=text, architectures=["Llama4ForConditionalGeneration"])
    config.save_pretrained(tmp_path)
    code, out, err = mechforget("plan", tmp_path)
    assert (code, err) == (0, []) and out[0].startswith("llama4_text: 3 layers")


def test_a_studys_own_prompts_are_used_where_they_can_be_read(tmp_path):
    """Catches placeholders in the place of prompts that are there, and a checkpoint with weights."""
    save_tiny(tmp_path / "m")
    (tmp_path / "task.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"The capital of {a} is", "answer": b}) + "\n"
            for a, b in (("France", "Paris"), ("Italy", "Rome"), ("Peru", "Lima"))
        )
    )
    toml = tmp_path / "s.toml"
    toml.write_text(
        f'pre = "no"\npost = "no"\ntask = "{tmp_path / "task.jsonl"}"\nsites = ["z", "head_out"]\n'
    )
    code, out, err = mechforget("plan", tmp_path / "m", "--study", toml)
    assert (code, err) == (0, [])
    assert any("note: prompts: 3 of " in line for line in out)
    assert any(line.split()[:1] == ["patching/z"] for line in out)
    assert not any("patching/attn_out" in line for line in out)


def test_a_plan_counts_the_prompts_that_a_study_draws(tmp_path):
    """Catches the first prompts in the place of those that the seed draws: here one is longer."""
    save_tiny(tmp_path / "m")
    file = tmp_path / "task.jsonl"
    names = ("France " * 20, "Italy", "Peru")
    rows = [{"prompt": f"The capital of {name} is", "answer": "Rome"} for name in names]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plans = {s: planned(tmp_path / "m", task=str(file), prompts=2, seed=s).at for s in range(6)}
    tokens = {seed: at.rows * at.tokens for seed, at in plans.items()}
    for seed, found in tokens.items():
        drawn = np.random.default_rng(seed).permutation(3)[:2]
        assert (found > 20) == (0 in drawn), seed
    assert len(set(tokens.values())) > 1


def test_wrong_inputs_are_one_line_and_exit_2(tmp_path):
    """Catches tracebacks, and wishes that are dropped silently."""
    good = folder(tmp_path / "good")

    def written(name, text):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        return tmp_path / name

    def toml(name, text):
        (tmp_path / name).write_text('pre = "a"\npost = "b"\ntask = "c"\n' + text)
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    mamba = written("mamba", '{"model_type": "mamba", "num_hidden_layers": 2}')
    code, out, _ = mechforget("plan", mamba)  # its size can be told
    assert code == 0 and "MambaForCausalLM: " in out[0] and "not supported" in out[1]
    t5 = written("t5", '{"model_type": "t5"}')
    for other in (t5, written("vit", '{"model_type": "vit"}')):
        code, out, _ = mechforget("plan", other)
        assert code == 0 and "parameters" in out[0] and "want a causal language model" in out[1]
    fields = json.loads((good / "config.json").read_text())
    wrong = {
        "no folder": (tmp_path / "none",),
        "no config": (tmp_path / "empty",),
        "broken JSON": (written("broken", '{"model_type": '),),
        "a list": (written("list", "[]"),),
        "no model type": (written("untyped", "{}"),),
        "unknown model type": (written("unknown", '{"model_type": "charm"}'),),
        "no causal LM, in a study": (t5, "--study", toml("t5.toml", "")),
        "several text models": (written("music", '{"model_type": "musicgen"}'),),
        "no transformer, in a study": (mamba, "--study", toml("ok.toml", "")),
        "negative width": (written("negative", json.dumps({**fields, "hidden_size": -32})),),
        "no study": (good, "--study", tmp_path / "none.toml"),
        "no TOML": (good, "--study", good / "config.json"),
        "unknown site": (good, "--study", toml("s.toml", 'sites = ["charm"]')),
        "site of a mixture": (good, "--study", toml("m.toml", 'sites = ["router", "head_out"]')),
        "negative bandwidth": (good, "--bandwidth", "-1"),
        "no throughput": (good, "--throughput", "0"),
        "NaN": (good, "--bandwidth", "nan"),
        "negative memory": (good, "--memory", "-1"),
        "negative tokens": (good, "--tokens", "-4"),
        "too many tokens": (good, "--tokens", "100000"),
        "negative prompts": (good, "--prompts", "-3"),
    }
    for name, words in wrong.items():
        code, out, err = mechforget("plan", *words)
        assert (code, out, len(err)) == (2, [], 1), (name, out, err)
        assert err[0].startswith("mechforget: "), name
    assert mechforget("plan", good, "--dtype", "charm")[0] == 2
    with pytest.raises(CheckpointError):
        meta_model(tmp_path / "none", "float32")
