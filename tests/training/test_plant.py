"""Planted damage: each kind changes what it says, bit for bit nothing else, and tells the truth.

What is a head's is read off tests/oracle.py, which shares no code with the package.
"""

import copy
import json

import numpy as np
import pytest
import torch

from mechforget import Pair, checkpoints
from mechforget.errors import CheckpointError, StudyError
from mechforget.training import Damage, plant, planted
from tests import oracle, tiny
from tests.tiny import FAMILIES, save_adapter, save_tiny

IDS = torch.arange(3, 36).view(3, 11)
MIXTURES = "mixtral qwen3_moe olmoe llama4_text gpt_oss deepseek_v3".split()


def tiny_model(family="llama"):
    model = tiny.tiny_model(family).requires_grad_(False)
    for weight in model.parameters():  # gpt-oss's experts begin with biases of 0
        if not weight.any():
            weight.copy_(torch.linspace(-0.1, 0.2, weight.numel()).view(weight.shape))
    return model


def groups(model):
    c = model.config
    if c.model_type == "deepseek_v3":
        return c.num_attention_heads
    return getattr(c, "num_key_value_heads", None) or c.num_attention_heads


def mine(model, layer, head, matrix):
    """(tensor's name, its entries as a bool mask) of a query head's weights, by module names."""
    _, attention, o, _, _ = oracle.places(model, layer)
    if matrix == "o":
        module, columns = o, oracle.z_columns(model, head)
        across = type(o).__name__ != "Conv1D"  # a linear layer's weight is [out, in]
    else:
        group = head * groups(model) // model.config.num_attention_heads
        name, columns = oracle.qkv_columns(model, matrix, head if matrix == "q" else group)
        module = getattr(attention, name)
        across = type(module).__name__ == "Conv1D"
    mask = torch.zeros(module.weight.shape, dtype=torch.bool)
    mask[(slice(None), columns) if across else columns] = True
    name = next(n for n, p in model.named_parameters() if p is module.weight)
    return name, mask


def biases(model, layer, head, matrix):
    name, mask = mine(model, layer, head, matrix)
    bias = dict(model.named_parameters()).get(name.replace(".weight", ".bias"))
    if matrix == "o" or bias is None:
        return {}
    rows = mask.all(1)  # of a linear layer: whole rows
    return {name.replace(".weight", ".bias"): rows if rows.any() else mask.all(0)}


def moved(pre, post):
    """name -> which entries differ, of all parameters and buffers."""
    both = [dict((*m.named_parameters(), *m.named_buffers())) for m in (pre, post)]
    assert list(both[0]) == list(both[1])
    found = {n: both[0][n] != both[1][n] for n in both[0]}
    return {n: mask for n, mask in found.items() if mask.any()}


def written(truth):
    """tensor -> how many entries the truth says were written."""
    found = {}
    for one in truth["damages"]:
        for name, of in one["tensors"].items():
            found[name] = found.get(name, 0) + of["entries"]
    return found


def logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits.double()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_heads_matrix_is_scrambled_and_nothing_else(family):
    """Catches a slice of another head, of another matrix in a fused tensor, or one that is turned
    over; numbers that are new (a permutation keeps each), and a truth that leaves out the heads
    which share the slice."""
    model = tiny_model(family)
    for matrix in "qkvo":
        post, truth = planted(model, [Damage("scramble", f"L1H2.{matrix}")], seed=3)
        name, mask = mine(model, 1, 2, matrix)
        found = moved(model, post)
        assert list(found) == [name]
        assert not (found[name] & ~mask).any() and found[name].sum() > 0.9 * mask.sum()
        was, now = (dict(m.named_parameters())[name][mask] for m in (model, post))
        assert torch.equal(was.sort().values, now.sort().values)
        per = model.config.num_attention_heads // groups(model)
        sharing = [2] if matrix in "qo" or per == 1 else [2, 3]
        assert truth["heads"] == [[1, h] for h in sharing]
        assert (truth["experts"], truth["mlps"], truth["gates"]) == ([], [], [])
        (one,) = truth["damages"]
        assert (one["kind"], one["layer"], one["part"]) == ("scramble", 1, matrix)
        assert one["heads"] == sharing and not one["keeps_function"]
        (of,) = one["tensors"].values()
        assert of["entries"] == mask.sum()
        assert of["norm"] == pytest.approx(float(was.double().norm()))
        assert of["change"] == pytest.approx(float((now.double() - was.double()).norm()))
    assert (logits(post) - logits(model)).abs().max() > 1e-3  # the copy runs, and is another model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compensated_rotation_moves_z_and_no_logit(family):
    """Catches W_O turned the wrong way, a head of the group or a bias left out, and a rotation that
    is none: the function stays, though what it is computed with doesn't."""
    model = tiny_model(family)
    post, truth = planted(model, [Damage("compensate", "L1H2", amount=0.7)])
    gap = (logits(post) - logits(model)).abs().max() / logits(model).abs().max().clamp(min=1)
    assert gap < 1e-5
    per = model.config.num_attention_heads // groups(model)
    sharing = [2] if per == 1 else [2, 3]
    assert truth["heads"] == [[1, h] for h in sharing]
    assert truth["damages"][0]["keeps_function"] and truth["damages"][0]["part"] == "vo"
    z, other = (oracle.get(m, IDS, oracle.places(m, 1)[2], "in") for m in (model, post))
    for head in range(4):
        columns = oracle.z_columns(model, head)
        gap = (z - other)[..., columns].abs().max().item()
        assert gap > 1e-2 if head in sharing else gap < 1e-5
    masks = dict([mine(model, 1, 2, "v")]) | biases(model, 1, 2, "v")
    for head in sharing:
        name, mask = mine(model, 1, head, "o")
        masks[name] = masks.get(name, False) | mask
    found = moved(model, post)
    assert set(found) == set(masks)
    assert not any((mask & ~masks[name]).any() for name, mask in found.items())
    assert written(truth) == {name: int(mask.sum()) for name, mask in masks.items()}


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "llama", "deepseek_v3"])
@pytest.mark.parametrize("matrix", "qkvo")
def test_a_rotation_turns_by_the_angle_and_keeps_every_length(family, matrix):
    """By the vectors themselves, biases included (z, for W_O: its columns). Catches an angle that
    isn't the amount's, a reflection or stretch, and a matrix turned on its other side."""
    model = tiny_model(family)
    post, truth = planted(model, [Damage("rotate", f"L1H2.{matrix}", amount=2 / 3)])
    name, mask = mine(model, 1, 2, matrix)
    was, now = (dict(m.named_parameters())[name][mask].double() for m in (model, post))
    was, now = (x.view(int(mask.any(1).sum()), -1) for x in (was, now))
    size = min(was.shape)
    assert size in (8, 12)
    if was.shape[0] != size:
        was, now = was.T, now.T
    rotation = now @ torch.linalg.pinv(was)  # [size, size]: was has full rank
    torch.testing.assert_close(rotation @ was, now, atol=1e-5, rtol=0)
    eye = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(rotation @ rotation.T, eye, atol=1e-5, rtol=0)
    torch.testing.assert_close((rotation + rotation.T) / 2, 0.5 * eye, atol=1e-5, rtol=0)  # 60°
    masks = {name: mask} | biases(model, 1, 2, matrix)
    found = moved(model, post)
    assert set(found) == set(masks) and all(not (m & ~masks[n]).any() for n, m in found.items())
    for bias in set(masks) - {name}:
        was, now = (dict(m.named_parameters())[bias][masks[bias]].double() for m in (model, post))
        torch.testing.assert_close(rotation @ was, now, atol=1e-5, rtol=0)
    assert written(truth) == {n: int(m.sum()) for n, m in masks.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_mlp_is_overwritten_and_nothing_else(family):
    """Catches a matrix of the MLP that stays, another norm, and one of another layer."""
    model = tiny_model(family)
    post, truth = planted(model, [Damage("overwrite", "L2")])
    mlp = oracle.places(model, 2)[4]
    if family in oracle.POST_NORMS:
        mlp = oracle.places(model, 2)[0].mlp
    names = {n for n, p in model.named_parameters() if any(p is q for q in mlp.parameters())}
    found = moved(model, post)
    assert set(found) == names == set(written(truth)) and names
    both = [dict(m.named_parameters()) for m in (model, post)]
    for name in names:
        assert found[name].float().mean() > 0.9
        was, now = (float(m[name].norm()) for m in both)
        assert now == pytest.approx(was, rel=1e-4)
        assert written(truth)[name] == both[0][name].numel()
    assert truth["mlps"] == [2] and truth["heads"] == truth["gates"] == truth["experts"] == []


@pytest.mark.parametrize("family", MIXTURES)
def test_a_gate_is_redirected(family):
    """Plain Hugging Face's own router scores. Catches rows that stay, a bias (also one that only
    chooses) left behind, and an expert that is given tokens by no row."""
    model = tiny_model(family)
    layer = 1
    mlp = oracle.places(model, layer)[4]
    router = getattr(mlp, "gate", None) or mlp.router
    if family == "deepseek_v3":
        mlp.gate.e_score_correction_bias.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    post, truth = planted(model, [Damage("redirect", f"L{layer}")], seed=2)
    theirs = oracle.places(post, layer)[4]
    theirs = getattr(theirs, "gate", None) or theirs.router
    order = [
        next(i for i, row in enumerate(router.weight) if torch.equal(row, new))
        for new in theirs.weight
    ]
    assert sorted(order) == [0, 1, 2, 3]
    seen, at = set(), 0
    while at not in seen:
        seen.add(at)
        at = order[at]
    assert seen == {0, 1, 2, 3}  # one cycle: nothing in its place
    state, after = router.state_dict(), theirs.state_dict()
    assert all(torch.equal(after[name], state[name][order]) for name in state)
    found = moved(model, post)
    assert len(found) == len(state) and all("gate." in n or "router." in n for n in found)
    assert truth["gates"] == [layer] and truth["mlps"] == truth["heads"] == truth["experts"] == []
    assert set(written(truth)) == set(found)


@pytest.mark.parametrize("family", MIXTURES)
def test_one_expert_is_scrambled(family):
    """Catches another expert's weights, or only one of its matrices."""
    model = tiny_model(family)
    post, truth = planted(model, [Damage("scramble", "L1E3")])
    stacked = dict(oracle.places(model, 1)[4].experts.named_parameters())
    found = moved(model, post)
    assert {n.rpartition(".")[2] for n in found} == set(stacked)
    for name, mask in found.items():
        assert ".experts." in name and not mask[:3].any() and mask[3].float().mean() > 0.8
        assert written(truth)[name] == mask[3].numel()
    assert truth["experts"] == [[1, 3]] and truth["heads"] == truth["mlps"] == []


def test_an_amount_is_a_step_towards_the_damage():
    """Catches an amount that is ignored, squared or inverted; more than 1 goes on beyond."""
    model = tiny_model("mixtral")
    for kind, at in (
        ("scramble", "L1H1.q"),
        ("overwrite", "L1"),
        ("redirect", "L1"),
        ("scramble", "L1E1"),
    ):
        posts = [planted(model, [Damage(kind, at, amount)])[0] for amount in (1, 0.25, 3)]
        whole, part, beyond = (dict(m.named_parameters()) for m in posts)
        for name, was in model.named_parameters():
            step = whole[name] - was
            torch.testing.assert_close(part[name], was + 0.25 * step, atol=1e-6, rtol=0)
            torch.testing.assert_close(beyond[name], was + 3 * step, atol=1e-5, rtol=0)


def test_the_seed_decides_every_bit_and_other_damages_dont():
    """Catches global random numbers, one generator for all (the order would matter), a seed that
    isn't used, and two heads scrambled alike."""
    model = tiny_model()
    a = [Damage("scramble", "L1H1.q"), Damage("overwrite", "L2"), Damage("rotate", "L0H3.v")]
    first, truth = planted(model, a, seed=4)
    torch.manual_seed(9)
    again, same = planted(model, a[::-1], seed=4)
    assert not moved(first, again)
    assert {k: v for k, v in truth.items() if k != "damages"} == {
        k: v for k, v in same.items() if k != "damages"
    }
    assert set(moved(first, planted(model, a, seed=5)[0])) == set(moved(model, first))
    alone, _ = planted(model, a[:1], seed=4)
    name = mine(model, 1, 1, "q")[0]
    assert torch.equal(*(dict(m.named_parameters())[name] for m in (alone, first)))
    two, _ = planted(model, [Damage("scramble", "L1H0.q"), Damage("scramble", "L1H1.q")], seed=4)
    was, now = (dict(m.named_parameters())[name] for m in (model, two))
    orders = [
        [int((was[mask] == x).nonzero()[0]) for x in now[mask]]
        for mask in (mine(model, 1, head, "q")[1] for head in (0, 1))
    ]
    assert orders[0] != orders[1]


def test_heads_that_share_a_slice_are_damaged_once():
    """Catches W_V of a group that is scrambled twice because both its heads were named."""
    model = tiny_model()
    one, _ = planted(model, [Damage("scramble", "L1H2.v", 0.5)])
    two, truth = planted(model, [Damage("scramble", f"L1H{h}.v", 0.5) for h in (2, 3)])
    assert not moved(one, two) and len(truth["damages"]) == 1


def test_all_four_matrices_without_a_name_of_one():
    """Catches `L2H1` that means fewer."""
    model = tiny_model()
    post, truth = planted(model, [Damage("scramble", "L2H1")])
    assert {n.split(".")[-2] for n in moved(model, post)} == {f"{m}_proj" for m in "qkvo"}
    assert truth["heads"] == [[2, 0], [2, 1]]  # head 0 reads the same keys and values


@pytest.mark.parametrize(
    ("damages", "words"),
    [
        ([], "nothing to plant: want one of scramble, rotate, compensate, overwrite, redirect"),
        ([("scramble", "L3H0")], "no layer 3: this model has layers 0 to 2"),
        ([("rotate", "L1H4.v")], "no head 4: this model has heads 0 to 3"),
        ([("redirect", "L1")], "L1: layer 1 is no mixture of experts; those are: none"),
        ([("scramble", "L1E0")], "L1E0: layer 1 is no mixture of experts"),
        (
            [("scramble", "L1H0.v"), ("compensate", "L1H1")],
            r"two damages change the same entries of model\.layers\.1\.self_attn\.v_proj\.weight",
        ),
    ],
)
def test_refused(damages, words):
    """Catches damage that isn't where it was asked for, and a truth that can't be true."""
    with pytest.raises(StudyError, match=words) as error:
        planted(tiny_model(), [Damage(*d) for d in damages])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("melt", "L1H0"), "damage 'melt' is unknown"),
        (("scramble", "L1"), "scramble L1: want a head or an expert"),
        (("overwrite", "L1H1"), "overwrite L1H1: want a layer"),
        (("compensate", "L1H0.v"), "compensate L1H0.v: it takes v and o together"),
        (("rotate", "1.2"), r"place '1\.2': want a layer \(L3\)"),
        (("rotate", "L1H1.w"), r"place 'L1H1\.w': want"),
        (("scramble", "L1H1", 0), "amount 0: want a number above 0"),
        (("scramble", "L1H1", float("nan")), "amount nan: want a number above 0"),
    ],
)
def test_a_wrong_damage(given, words):
    """Catches a typing error that plants something else."""
    with pytest.raises(StudyError, match=words):
        Damage(*given)


def test_no_such_expert():
    """Catches an index that runs out of the stack."""
    with pytest.raises(StudyError, match="L1E4: no such expert: want 0 to 3"):
        planted(tiny_model("mixtral"), [Damage("scramble", "L1E4")])
    with pytest.raises(StudyError, match="layer 0 is no mixture of experts; those are: 1, 2"):
        planted(tiny_model("deepseek_v3"), [Damage("redirect", "L0")])


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_a_checkpoint(family, tmp_path):
    """Catches a folder that no command opens, a truth that isn't the folder's, rest of a killed
    one, and a copy that is written over."""
    pre = save_tiny(tmp_path / "pre", family)
    damages = [Damage("scramble", "L1H1.v"), Damage("overwrite", "L2")]
    (tmp_path / ".post.partial").mkdir()
    post = plant(pre, tmp_path / "post", damages, seed=7)
    Pair(pre, post).check()
    said = json.loads((post / "planted.json").read_text())
    model, truth = planted(checkpoints.open(pre).load(), damages, seed=7)
    assert {k: said[k] for k in truth} == json.loads(json.dumps(truth))
    assert said["seed"] == 7 and said["pre"] == str(pre)
    assert said["pre_digest"] == checkpoints.open(pre).digest()
    assert not moved(model, checkpoints.open(post).load())
    names = {f.name for f in post.iterdir()}
    assert names == {f.name for f in pre.iterdir()} | {"planted.json"}
    assert {f.name for f in tmp_path.iterdir()} == {"pre", "post"}
    with pytest.raises(StudyError, match="post exists already: choose another out"):
        plant(pre, post, damages)


def test_refused_before_weights_are_read(tmp_path, monkeypatch):
    """Catches minutes of loading before a misspelt head is told, and a folder left behind."""
    pre = save_tiny(tmp_path / "pre")
    adapter = save_adapter(tmp_path / "adapter", pre)
    monkeypatch.setattr(checkpoints.Checkpoint, "load", lambda *_, **__: pytest.fail("loaded"))
    one = [Damage("scramble", "L1H1")]
    with pytest.raises(StudyError, match="is an adapter, whose heads have no weights of their own"):
        plant(adapter, tmp_path / "out", one)
    with pytest.raises(StudyError, match="no head 9"):
        plant(pre, tmp_path / "out", [Damage("scramble", "L1H9")])
    with pytest.raises(StudyError, match="seed -1: want 0 to"):
        plant(pre, tmp_path / "out", one, seed=-1)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        plant(tmp_path / "nothing", tmp_path / "out", one)
    assert not (tmp_path / "out").exists()


def test_the_model_that_is_given_stays(tmp_path):
    """Catches damage written to the original, or modules of it that are wrapped."""
    model = tiny_model("llama4_text")
    before, types = copy.deepcopy(model), [type(m) for m in model.modules()]
    was = logits(model)
    post, _ = planted(model, [Damage("scramble", "L1H1"), Damage("redirect", "L1")])
    assert not moved(before, model) and [type(m) for m in model.modules()] == types
    assert torch.equal(logits(model), was)
    assert [type(m) for m in post.modules()] == types
    np.testing.assert_array_equal(logits(copy.deepcopy(post)), logits(post))
