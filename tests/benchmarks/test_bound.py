"""The least arithmetic, against torch's own counter on plain loops that pad nothing.

The loop keeps a cache of keys and values and feeds one token at a time, each distinct beginning of
the prompts once. So it computes what the bound counts, and attention is over real tokens alone.
"""

import copy
import re

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from benchmarks import bound
from benchmarks.bound import Shape
from benchmarks.peers import places
from benchmarks.prompts import Sequences
from tests.tiny import tiny_model

ROWS = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 4, 3, 11], [10, 6]]  # prompts with shared beginnings
READS = [(0, 3), (1, 2), (2, 4), (2, 5), (3, 1)]


def sequences(rows=ROWS, reads=READS):
    ids = np.zeros((len(rows), max(map(len, rows))), int)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    row, position = np.array(reads).T
    length = np.array([len(row) for row in rows])
    nought = np.zeros(len(reads), int)
    return Sequences(ids, length, row, position, nought + 3, row, nought.astype(bool), len(rows))


def counted(counter):
    """FLOPs by module and kind of product, of one run. The rotary table is a product, too, which
    depends on nothing and which nobody would count: it is in no layer."""
    found = {}
    for name, ops in counter.get_flop_counts().items():
        found[name] = {str(op).split(".")[-1]: n for op, n in ops.items()}
    return found


def of(found, pattern):
    return sum(sum(ops.values()) for name, ops in found.items() if re.search(pattern, name))


def from_layer(model, layer):
    """The model without the layers below."""
    rest = copy.deepcopy(model)
    blocks = list(places.layers(rest))[layer:]
    for index, block in enumerate(blocks):
        (block.attn if places.is_gpt2(rest) else block.self_attn).layer_idx = index
    if places.is_gpt2(rest):
        rest.transformer.h = torch.nn.ModuleList(blocks)
    else:
        rest.model.layers = torch.nn.ModuleList(blocks)
    rest.config.num_hidden_layers = len(blocks)
    return rest


@torch.no_grad()
def by_node(model, rows, reads):
    """beginning -> FLOPs of its last token, unembedded if it is read."""
    read = {tuple(rows[row][: at + 1]) for row, at in reads}
    found = {}

    def walk(node, cache):
        children = dict.fromkeys(
            tuple(row[: len(node) + 1]) for row in rows if tuple(row[: len(node)]) == node
        )
        for child in children:
            if len(child) == len(node):
                continue
            past = copy.deepcopy(cache)
            whole = model if child in read else places.body(model)
            with FlopCounterMode(display=False) as counter:
                whole(torch.tensor([child[-1:]]), past_key_values=past, use_cache=True)
            flops = counted(counter)
            found[child] = of(flops, r"\.(layers|h)\.\d+$") + of(flops, r"^lm_head$|\.lm_head$")
            walk(child, past)

    walk((), DynamicCache(config=model.config))
    return found


def own(model, pattern):
    """FLOPs for each token of the modules of the first layer whose name fits."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.tensor([[5]]), use_cache=False)
    return of(counted(counter), pattern)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def loops(model):
    """layer -> FLOPs of each node from this layer on."""
    layers = range(model.config.num_hidden_layers + 1)
    return {layer: by_node(from_layer(model, layer), ROWS, READS) for layer in layers}


def test_the_counter_sees_all_of_a_model(model):
    """Catches names of modules that fit nothing: the oracle would count nothing."""
    c = model.config
    unembed = 2 * c.hidden_size * c.vocab_size
    assert own(model, r"lm_head$") == unembed
    assert own(model, r"\.(layers|h)\.\d+$") > c.num_hidden_layers * 8 * c.hidden_size**2


def test_one_pass(model, loops):
    """Catches a matrix that is counted twice or not at all, grouped keys counted as many, padding,
    a beginning that is counted for every prompt, and attention to tokens that come later."""
    found = bound.forward(Shape.of(model.config), sequences().tree())
    assert found == sum(loops[0].values())


def test_a_sweep_of_z(model, loops):
    """Catches variants that are counted from the first layer on, one direction, and a patched layer
    that is computed whole or left out."""
    heads, shape = model.config.num_attention_heads, Shape.of(model.config)
    after = own(model, r"\.0\.(self_attn\.o_proj|attn\.c_proj)$") + own(model, r"\.0\.mlp$")
    total = sum(loops[0].values())
    for layer in range(shape.layers):
        total += heads * (len(loops[0]) * after + sum(loops[layer + 1].values()))
    assert bound.sweep(shape, sequences().tree(), "z") == 2 * total


@pytest.mark.parametrize("site", "qkv")
def test_a_sweep_of_queries_keys_and_values(model, loops, site):
    """Catches projections that are counted again, and keys counted by query heads."""
    shape = Shape.of(model.config)
    units = model.config.num_attention_heads
    if site != "q":
        units = getattr(model.config, "num_key_value_heads", units)
    projections = own(model, r"\.0\.(self_attn\.[qkv]_proj|attn\.c_attn)$")
    width = shape.heads * shape.d_head
    scores = sum(2 * len(node) * width for node in loops[0])
    total = sum(loops[0].values())
    for layer in range(shape.layers):
        whole = sum(loops[layer].values()) - len(loops[0]) * projections
        total += units * (whole - (scores if site == "v" else 0))
    assert bound.sweep(shape, sequences().tree(), site) == 2 * total


def test_positions(model, loops):
    """Catches tokens before the patched one, which nothing changes, and reads there."""
    shape = Shape.of(model.config)
    total = sum(loops[0].values())
    for layer in range(shape.layers):
        for position in range(max(map(len, ROWS))):
            total += sum(n for node, n in loops[layer].items() if len(node) > position)
    assert bound.positions(shape, sequences().tree()) == 2 * total


def test_attribution(model):
    """Catches a pass back that is counted as a forward pass: products of two activations are two."""
    rows, reads = [[5, 6, 7, 8], [9, 6, 3]], [(0, 3), (1, 1), (1, 2)]  # these share nothing
    prompts, shape = sequences(rows, reads), Shape.of(model.config)
    forward = back = 0.0
    model.requires_grad_(False)
    for one in prompts.by_prompt():
        ids, row, position, _ = places.tensors(one, "cpu")
        n, z = ids.shape[1], []

        def keep(t, z=z):
            z.append(t if t.requires_grad else t.detach().requires_grad_())
            return z[-1]

        hooks = [places.place(model, layer, "z").hook(keep) for layer in range(shape.layers)]
        with places.hooked(hooks), FlopCounterMode(display=False) as ahead:
            hidden = places.body(model)(ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[row, position])
        with FlopCounterMode(display=False) as behind:
            torch.autograd.grad(logits.sum(), z)
        triangle = (n + 1) / (2 * n)  # of a square of scores those that aren't masked
        for counter, is_back in ((ahead, False), (behind, True)):
            flops = counted(counter)["Global"]
            rotary = of(counted(counter), r"rotary_emb$")
            attention = (flops.pop("bmm") - rotary) * triangle
            if is_back:
                back += sum(flops.values()) + attention
            else:
                forward += sum(flops.values()) + attention
    trees = [one.tree() for one in prompts.by_prompt()]
    found = bound.attribution(shape, prompts.tree(), trees, metrics=3)
    assert found == pytest.approx(2 * (forward + 3 * back), rel=1e-12)


def test_a_screen_runs_the_kept_heads_only(model, loops):
    """Catches kept heads that cost the same in every layer, and one direction."""
    shape, tree = Shape.of(model.config), sequences().tree()
    after = own(model, r"\.0\.(self_attn\.o_proj|attn\.c_proj)$") + own(model, r"\.0\.mlp$")
    kept = [(0, 1), (2, 3)]
    exact = sum(loops[0].values())
    exact += sum(len(loops[0]) * after + sum(loops[layer + 1].values()) for layer, _ in kept)
    assert bound.screen(shape, tree, 1000.0, kept) == 1000 + 2 * exact
