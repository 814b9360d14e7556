"""Denoising and noising: against plain hooks, and against TransformerLens's own loop."""

import numpy as np
import pytest
import torch

from mechforget.checkpoints import Pair
from mechforget.errors import MeasureError
from mechforget.measures import Inputs, clean_corrupt
from mechforget.tasks.task import Task
from tests import oracle
from tests.measures import toy
from tests.tiny import tiny_tokenizer


def task():
    """Corrupted prompts for all but two rows, of one length with the clean ones."""
    rows = toy.task().counterparts(tiny_tokenizer()).rows
    rows["wrong"] = toy.task().rows["wrong"]  # what it was, so that `toy.scores` fits
    rows.loc[[4, 6], "corrupted"] = None
    return Task("toy", rows, "toy")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    for name, model in zip(("pre", "post"), toy.pair(), strict=False):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return Inputs.of(Pair(folder / "pre", folder / "post"), task())


@pytest.mark.parametrize("site", ["z", "mlp_out"])
def test_effects_equal_plain_hooks(inputs, site):
    """Catches denoise and noise exchanged, a flipped sign, pre's hooks on post, the corrupted
    prompt's own answers, and numbers where there is no counterpart."""
    found = clean_corrupt(inputs, site=site)
    clean, corrupted = (torch.as_tensor(x.ids) for x in (inputs.encoded, inputs.corrupted))
    assert found.effect.dims[:4] == ("at", "metric", "direction", "layer")
    for at, model in zip(("pre", "post"), toy.pair(), strict=False):
        for layer, head in ((0, 1), (1, 2)):
            head = head if site == "z" else None
            denoised = oracle.patched(model, model, corrupted, clean, layer, site, head)
            noised = oracle.patched(model, model, clean, corrupted, layer, site, head)
            base, worse = toy.plain(model), toy.scores(oracle.run(model, corrupted))
            denoised, noised = toy.scores(denoised), toy.scores(noised)
            where = {"at": at, "layer": layer, **({"head": head} if head is not None else {})}
            for metric in base:
                for direction, want in (
                    ("denoise", denoised[metric] - worse[metric]),
                    ("noise", base[metric] - noised[metric]),
                ):
                    want[[4, 6]] = np.nan
                    got = found.effect.sel(where, drop=True).sel(metric=metric, direction=direction)
                    np.testing.assert_allclose(got, want, atol=5e-5, err_msg=f"{metric} {at}")
    log_prob = found.effect.sel(metric="log_prob", at="pre")
    assert log_prob.mean(("layer", "prompt")).max() > 0.5  # restoring the clean subject helps


def test_transformer_lens_patches_the_same(inputs):
    """Catches what our own hooks and our own oracle would both get wrong."""
    from transformer_lens.patching import get_act_patch_attn_head_out_all_pos as all_heads

    found = clean_corrupt(inputs).effect.sel(at="post", metric="log_prob", direction="denoise")
    batch, other, bridge = inputs.encoded, inputs.corrupted, inputs.post.module
    for prompt in (0, 11):
        one, two = batch.subset([prompt]), other.subset([prompt])
        reads = ~one.read_wrong
        at = (one.read_row[reads], one.read_position[reads], one.read_target[reads])

        def log_prob(logits, at=at):
            return torch.log_softmax(logits, -1)[at].sum()

        with torch.no_grad():
            _, cache = bridge.run_with_cache(torch.as_tensor(one.ids))
            worse = torch.as_tensor(two.ids)
            want = all_heads(bridge, worse, cache, log_prob) - log_prob(bridge(worse))
        np.testing.assert_allclose(found.sel(prompt=prompt), want, atol=5e-5)


def test_the_counterpart_must_fit(tmp_path, inputs):
    """Catches prompts compared token by token that aren't aligned, and a task without any."""
    with pytest.raises(MeasureError, match="clean_corrupt needs a corrupted counterpart"):
        clean_corrupt(toy.pair()[2])
    rows = task().rows
    rows.loc[0, "corrupted"] = "The capital of Kenya is"
    for name, model in zip(("pre", "post"), toy.pair(), strict=False):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    pair = Pair(tmp_path / "pre", tmp_path / "post")
    found = clean_corrupt(Inputs.of(pair, Task("toy", rows, "toy"))).effect.sel(metric="log_prob")
    lacking = found.isnull().all(("at", "direction", "layer", "head"))
    assert np.flatnonzero(lacking).tolist() == [0, 4, 6]  # another length counts as none
