"""The examples in the docstrings of the public measures, on the models that `measures` names."""

import copy
import doctest
import inspect
import sys
from dataclasses import replace
from functools import cache

import pandas as pd
import pytest
import torch

from mechforget import measures
from mechforget.checkpoints import Pair
from mechforget.measures import Inputs
from mechforget.measures.neutral_text import neutral
from mechforget.tasks import Task
from tests.measures import toy
from tests.tiny import tiny_model, tiny_tokenizer

HEAD = slice(2 * 8, 3 * 8)  # the columns of W_O that are head 2's


@cache
def models():
    """pre, and post with W_O of L1H2 negated."""
    pre = toy.memorised()
    post = copy.deepcopy(pre)
    with torch.no_grad():
        post.model.layers[1].self_attn.o_proj.weight[:, HEAD] *= -1
    return pre, post


@cache
def corrupted():
    """Each prompt with the subject of the next: those whose subject has another number of tokens
    stand for themselves."""
    rows, tokenizer = toy.task().rows.copy(), tiny_tokenizer()
    subjects = rows["subject"].tolist()
    others = [
        prompt.replace(subject, other)
        for prompt, subject, other in zip(
            rows["prompt"], subjects, subjects[1:] + subjects[:1], strict=True
        )
    ]
    size = [len(ids) for ids in tokenizer(others)["input_ids"]]
    same = [len(ids) for ids in tokenizer(rows["prompt"].tolist())["input_ids"]]
    rows["prompt"] = [
        other if a == b else own
        for other, own, a, b in zip(others, rows["prompt"], size, same, strict=True)
    ]
    assert (rows["prompt"] != toy.task().rows["prompt"]).any()
    return Task("toy", pd.DataFrame(rows), "toy").encode(tokenizer)


@cache
def names(home):
    pre, post = models()
    for name, model in (("pre", pre), ("post", post)):
        model.save_pretrained(home / name)
        tiny_tokenizer().save_pretrained(home / name)
    same = toy.opened(pre)
    planted = Inputs(
        same, toy.opened(post), toy.encoded(), corrupted(), neutral=neutral(tiny_tokenizer())
    )
    experts = toy.opened(tiny_model("mixtral"), "nnsight")
    return {
        "planted": planted,
        "same": replace(planted, post=same),
        "mixture": Inputs(experts, experts, toy.encoded()),
        "pair": Pair(home / "pre", home / "post"),
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("pair")


@pytest.mark.parametrize("name", [name for name in measures.__all__ if name != "Inputs"])
def test_every_measure_has_an_example_that_holds(name, home):
    """Catches a public measure without an example, and one whose known answer isn't found."""
    measure = inspect.unwrap(getattr(measures, name))
    given = {**vars(sys.modules[measure.__module__]), **names(home)}
    found = doctest.DocTestFinder(recurse=False).find(measure, name, globs=given)
    assert found and found[0].examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found[0]).failed == 0
