"""What makes large models possible: weights on the disk, routed experts only, halves on a CPU."""

import copy
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, Llama4Config, Llama4ForConditionalGeneration
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

from mechforget import checkpoints, models
from mechforget.checkpoints import folder, placement
from mechforget.errors import CheckpointError, ModelError
from mechforget.measures.weights import lacks_for_streaming
from mechforget.models import half
from mechforget.models.llama4 import dispatch_routed
from mechforget.sweeps.donor import Donor
from mechforget.sweeps.plan import graft, single
from mechforget.sweeps.run import sweep
from tests.sweeps.test_run import encoded
from tests.tiny import FAMILIES, save_tiny, tiny_model, tiny_tokenizer

ON_DISK = models.Loading("nnsight", "disk")


@pytest.mark.parametrize("family", ["llama", "gpt2", "llama4_text", "mixtral", "gpt_oss"])
def test_weights_on_the_disk_give_the_same_sweep(family, tmp_path):
    """Catches hooks that offloading undoes, weights read of another tensor, and experts not found."""
    folders = [save_tiny(tmp_path / str(seed), family, seed) for seed in (0, 1)]
    batch = encoded(0)
    found = []
    for loading in (ON_DISK, models.Loading("nnsight")):
        pre, post = (models.open(checkpoints.open(f), loading) for f in folders)
        assert pre.spec.resident == (loading is not ON_DISK)
        sites = [
            s for s in ("z", "head_out", "expert_out", "router", "W_expert") if s in post.spec.sites
        ]
        variants = [v for site in sites for v in single(post.spec, site)]
        variants.append(graft(post.spec, 1, 2, "all"))
        found.append(sweep(post, batch, Donor.of(pre, batch, variants), variants)[0])
        assert ("router" in sites) == (family not in ("llama", "gpt2"))
    torch.testing.assert_close(*map(torch.as_tensor, found), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "llama4_text"])
def test_weights_partly_in_memory_and_partly_on_the_disk_give_the_same(
    family, tmp_path, monkeypatch
):
    """Catches a graft, a head's W_O or an expert that is read where a block's weights aren't: what
    `auto` makes of a model that nearly fits has both kinds."""
    whole = placement.device_map
    held = {"model.layers.0": "cpu", "model.layers.2": "cpu"}

    def mixed(config, device):
        return whole(config, "disk") | held if device == "auto" else whole(config, device)

    monkeypatch.setattr(placement, "device_map", mixed)
    folders = [save_tiny(tmp_path / str(seed), family, seed) for seed in (0, 1)]
    batch, logits, found = encoded(0), [], []
    for loading in (models.Loading("nnsight", "auto"), models.Loading("nnsight")):
        pre, post = (models.open(checkpoints.open(f), loading) for f in folders)
        where = {p.device.type for p in post.module.parameters()}
        assert where == ({"meta", "cpu"} if loading.device == "auto" else {"cpu"})
        logits.append(post.module(torch.as_tensor(batch.ids)).logits)
        sites = [s for s in ("z", "head_out", "expert_out", "W_expert") if s in post.spec.sites]
        variants = [v for site in sites for v in single(post.spec, site)]
        variants += [graft(post.spec, layer, 2, "all") for layer in range(3)]
        found.append(sweep(post, batch, Donor.of(pre, batch, variants), variants)[0])
    torch.testing.assert_close(*logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(*map(torch.as_tensor, found), atol=1e-5, rtol=0)


class Allocated(TorchDispatchMode):
    """Bytes of the tensors that operations make in memory; views and mapped files are none."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        given = {id(x) for x in tree_leaves((args, kwargs))}
        for t in tree_leaves(found):
            if isinstance(t, torch.Tensor) and t.device.type == "cpu" and id(t) not in given:
                self.bytes += 0 if func.is_view else t.nbytes
        return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "llama4_text", "gpt_oss"])
def test_weights_on_the_disk_are_not_made_in_memory(family, tmp_path):
    """Catches a weight that is filled, copied or converted while the model is opened, and another
    weight in its place."""
    checkpoint = checkpoints.open(save_tiny(tmp_path / "m", family))
    size = sum(info.end - info.begin for info in checkpoint.tensors().values())

    def load(dtype, device):
        how = {"dtype": dtype, "attn_implementation": "eager", "device": device}
        with Allocated() as allocated:
            return folder.load(checkpoint.folder, checkpoint.config, **how), allocated.bytes

    model, made = load(torch.float32, "disk")
    assert made < size / 100
    assert load(torch.float64, "disk")[1] >= size, "a conversion makes each anew, and isn't seen"
    ids = torch.arange(3, 25).view(2, 11)
    assert torch.equal(model(ids).logits, load(torch.float32, "cpu")[0](ids).logits)


def test_a_spread_model_wants_nnsight_and_an_adapter_memory(tmp_path):
    """Catches weights on no device that TransformerLens would wrap."""
    folder = save_tiny(tmp_path / "a")
    with pytest.raises(ModelError, match="device 'disk' spreads a model, which transformer_lens"):
        models.open(checkpoints.open(folder), models.Loading(device="disk"))
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"])).save_pretrained(
        tmp_path / "lora"
    )
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(
        re.sub(
            r'"base_model_name_or_path": \w+',
            f'"base_model_name_or_path": "{folder}"',
            config.read_text(),
        )
    )
    with pytest.raises(CheckpointError, match="an adapter, which is merged in memory"):
        models.open(checkpoints.open(tmp_path / "lora"), ON_DISK)


def test_the_published_format_is_opened_as_its_language_model(tmp_path):
    """Catches Scout's and Maverick's folders refused, another model's logits, tensors of vision
    taken for strange ones, and strange ones taken for vision."""
    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128)
    wide = dict(vision_output_dim=32, projector_input_dim=32, projector_output_dim=32)
    vision = small | wide | dict(image_size=28, patch_size=14)
    torch.manual_seed(0)
    whole = Llama4ForConditionalGeneration(
        Llama4Config(text_config=FAMILIES["llama4_text"], vision_config=vision, pad_token_id=0)
    ).eval()
    with torch.no_grad():
        for weight in whole.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    whole.save_pretrained(tmp_path / "a")
    tiny_tokenizer().save_pretrained(tmp_path / "a")
    checkpoint = checkpoints.open(tmp_path / "a")
    ids = torch.arange(3, 25).view(2, 11)
    for loading in (models.Loading(), models.Loading("nnsight"), ON_DISK):
        got = models.open(checkpoint, loading).run(ids, {})
        torch.testing.assert_close(got, whole(input_ids=ids).logits, atol=1e-5, rtol=0)
    checkpoint.load().save_pretrained(tmp_path / "text")
    tiny_tokenizer().save_pretrained(tmp_path / "text")
    pair = checkpoints.Pair(tmp_path / "a", tmp_path / "text")
    pair.check()
    assert not lacks_for_streaming(pair)  # nor by `diff`
    assert not any("vision" in name or "multi_modal" in name for name in checkpoint.tensors())
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    strange = {"language_model.model.layers.0.strange": torch.ones(2)}
    save_file(tensors | strange, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 unexpected, e\.g\. \S+\.0\.strange"):
        checkpoints.open(tmp_path / "a").load()


def test_llama_4_without_the_experts_that_were_not_chosen():
    """Catches a token given to another expert, a weight applied after instead of before."""
    model = tiny_model("llama4_text")
    ids = torch.arange(3, 25).view(2, 11)
    want = model(ids).logits
    ran = []
    dispatched = copy.deepcopy(model)
    dispatch_routed(dispatched)
    experts = dispatched.model.layers[1].feed_forward.experts
    experts.register_forward_pre_hook(lambda m, args: ran.append(args[0].shape[0]))
    torch.testing.assert_close(dispatched(ids).logits, want, atol=1e-6, rtol=0)
    assert ran == [22]  # the reference gives its 4 experts 88 rows
    dispatch_routed(other := tiny_model("mixtral"))
    assert type(other) is type(tiny_model("mixtral"))


@pytest.mark.parametrize("experts", [16, 128])  # Scout's and Maverick's
def test_only_the_routed_experts_are_worked_for(experts):
    """Catches work that isn't saved: the reference does as many times more as there are experts."""
    config = AutoConfig.for_model(
        "llama4_text",
        **(dict(hidden_size=32, intermediate_size=48, num_attention_heads=4)),
        **(dict(num_local_experts=experts, num_experts_per_tok=1, num_hidden_layers=1)),
    )
    plain = Llama4TextMoe(config).requires_grad_(False)
    for weight in plain.parameters():
        torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(0))
    dispatched = copy.deepcopy(plain)
    dispatch_routed(dispatched)
    hidden = torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(1))
    both = []
    for module in (plain, dispatched):
        with FlopCounterMode(display=False) as counted:
            out = module(hidden)[0].view(24, 32)
        others = 2 * 24 * 32 * (3 * 48 + experts)  # the shared expert and the router
        both.append((out, counted.get_total_flops() - others))
    torch.testing.assert_close(both[1][0], both[0][0], atol=1e-5, rtol=0)
    assert both[0][1] == experts * both[1][1]


def test_halves_multiplied_in_float32_are_rounded_once():
    """Catches a slice of the weight that is left out, and a bias that is lost."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(40, half.COLUMNS + 3).bfloat16()
    x = torch.randn(2, 5, 40, generator=generator).bfloat16()
    exact = x.double() @ linear.weight.T.double()
    want = exact.bfloat16() + linear.bias
    half.in_float32(linear)
    torch.testing.assert_close(linear(x), want, atol=2e-2, rtol=1e-2)
    assert (linear(x) == want).double().mean() > 0.99
    assert half.product(x.double(), linear.weight.T.double()).dtype == torch.float64
