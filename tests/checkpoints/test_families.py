"""The rows of families, and a family that nobody has seen: with its own names, or with Llama's."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from mechforget.checkpoints import families
from mechforget.checkpoints.families import Family, family, is_latent, keeps_in_out
from mechforget.checkpoints.layout import heads_of, layout
from mechforget.errors import ModelError
from mechforget.models.cells import cells
from mechforget.models.opening import proven
from tests.models.test_other_families import OTHERS
from tests.sweeps.test_run import encoded
from tests.tiny import FAMILIES, tiny_model

NAMES = {  # Llama's names -> those of a family that calls everything otherwise
    **{"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "merge"},
    **{"mlp": "ff", "gate_proj": "opens", "up_proj": "widens", "down_proj": "narrows"},
}
ROW = Family(
    qkv=("query", "key", "value"),
    output=("merge",),
    mlp=("ff",),
    W_gate=("opens",),
    W_in=("widens",),
    W_out=("narrows",),
)


class StrangeConfig(LlamaConfig):
    model_type = "strange"


class StrangeForCausalLM(LlamaForCausalLM):
    config_class = StrangeConfig


def strange(renamed: bool) -> tuple[nn.Module, nn.Module]:
    """A Llama of another model type, whose modules may have other names, and the Llama."""
    plain = tiny_model("llama")
    config = StrangeConfig(**{**plain.config.to_dict(), "model_type": "strange"})
    config._attn_implementation = "eager"
    found = StrangeForCausalLM(config).eval()
    found.load_state_dict(plain.state_dict())
    for module in list(found.modules()) if renamed else ():
        for name in [n for n, _ in module.named_children() if n in NAMES]:
            child = getattr(module, name)
            delattr(module, name)
            setattr(module, NAMES[name], child)
            _alias(module, name, NAMES[name])
    return found, plain


def _alias(module: nn.Module, old: str, new: str) -> None:
    """Llama's own forward finds the child by its old name: it isn't registered there."""
    kind = type(module)
    if not hasattr(kind, old):
        module.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__})
    setattr(type(module), old, property(lambda self: self._modules[new]))


def test_a_llama_like_family_needs_no_row():
    """Catches a family that is read by its name where its modules say enough."""
    found, plain = strange(renamed=False)
    assert "strange" not in families.ROWS
    got, want = (proven(copy.deepcopy(m), "nnsight") for m in (found, plain))
    assert got.spec.sites == want.spec.sites and got.spec.family == "strange"


def test_a_family_with_names_of_its_own_needs_one_row(monkeypatch):
    """Catches a name that is known in one file only: sites, weights' cells and stored layout must
    all follow from the row. Without it the model is refused."""
    found, plain = strange(renamed=True)
    names = {name for name, _ in found.named_parameters()}
    assert "model.layers.0.self_attn.merge.weight" in names and not any("proj" in n for n in names)
    with pytest.raises(ModelError, match="is not supported"):
        proven(copy.deepcopy(found), "nnsight")
    monkeypatch.setitem(families.ROWS, "strange", ROW)
    got, want = (proven(copy.deepcopy(m), "nnsight") for m in (found, plain))
    assert got.spec.sites == want.spec.sites
    ids = torch.as_tensor(encoded().ids)
    torch.testing.assert_close(got.run(ids, {}), want.run(ids, {}))
    for matrix in ("W_Q", "W_K", "W_V", "W_O"):
        assert torch.equal(got.weight(1, matrix, 1)[0], want.weight(1, matrix, 1)[0])

    def owned(model, rename):
        places = {p: name for name, p in model.module.named_parameters()}
        return {
            ".".join(rename.get(word, word) for word in places[p].split(".")): [
                (c.part, c.layer, c.unit) for c in mine
            ]
            for p, mine in cells(model).items()
        }

    assert owned(got, {}) == owned(want, NAMES)
    for name, p in found.named_parameters():
        shape, llama = tuple(p.shape), name
        for old, new in NAMES.items():
            llama = llama.replace(f".{new}.", f".{old}.")
        mine = layout(name, shape, heads_of(found.config.to_dict()))
        assert mine == layout(llama, shape, heads_of(plain.config.to_dict())), name


def test_doctor_lists_what_the_tests_open():
    """Catches a family that is said to be tested and isn't, or the reverse."""
    assert sorted(families.TESTED) == sorted({*FAMILIES, *OTHERS})


@pytest.mark.parametrize("name", sorted({*FAMILIES, *OTHERS}))
def test_rows_agree_with_transformers_modules(name):
    """Catches a row that says Conv1D of linear layers, or latent attention read from a config that
    has none: stored tensors would be cut along the wrong axis."""
    config = AutoConfig.for_model(name, **(FAMILIES | OTHERS)[name])
    with torch.device("meta"):
        modules = list(AutoModelForCausalLM.from_config(config).modules())
    assert any(keeps_in_out(m) for m in modules) == family(name).conv1d
    assert is_latent(config) == is_latent(config.to_dict()) == (name == "deepseek_v3")


def test_no_row_says_what_holds_without_it():
    """Catches rows that say nothing."""
    for name, row in families.ROWS.items():
        assert row != families.STANDARD, name
