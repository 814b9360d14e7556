"""Token ids, reads and scores, against a model that is asked one prompt and one answer at a time.

The oracle concatenates text by its own rule, runs a batch of one without padding, and adds up in
Python; it shares nothing with the package but the tokenizer and the model.
"""

import math
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechforget.errors import TaskError
from mechforget.tasks import Encoded, Task
from tests.tiny import tiny_model, tiny_tokenizer

PLAIN, WITH_BOS = tiny_tokenizer(), tiny_tokenizer(bos=True)
MODEL = tiny_model("llama").double()
CLOSE = 1e-6  # eager attention's softmax is float32 even here: other matmul shapes cost 1e-8

PROMPTS = [
    "The capital of France is",
    "The capital of Italy is ",
    "People",
    "One dog, two\n",
    "Zürich \u202e is",
    "x</script>\0",
]
ANSWERS = ["Paris", " Rome", "Rome", "Paris Italy", "Italy", "Lima", "\tyen", "Zürich", "Z", "Zq"]


def make(rows):
    frame = pd.DataFrame(rows, columns=["prompt", "answer", "wrong"], dtype=object)
    return Task("t", frame, "t.csv")


@st.composite
def tasks(draw):
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        answer = draw(st.sampled_from(ANSWERS))
        others = [None, None, *(a for a in ANSWERS if a.strip() != answer.strip())]
        rows.append((draw(st.sampled_from(PROMPTS)), answer, draw(st.sampled_from(others))))
    return make(rows)


def ids_of(tokenizer, prompt, answer):
    """(prompt ids, answer ids) by the definition in words."""
    touching = prompt == prompt.rstrip() and answer == answer.lstrip()
    text = " " + answer if touching else answer
    return tokenizer(prompt).input_ids, tokenizer(text, add_special_tokens=False).input_ids


def alone(tokenizer, prompt, answer):
    """(sum log p, all argmax) of one answer after one prompt: batch of one, no padding."""
    start, end = ids_of(tokenizer, prompt, answer)
    with torch.no_grad():
        logits = MODEL(torch.tensor([start + end])).logits[0].numpy()
    total, best = 0.0, True
    for j, token in enumerate(end):
        row = logits[len(start) + j - 1]
        biggest = max(row)
        total += row[token] - biggest - math.log(sum(math.exp(v - biggest) for v in row))
        best = best and list(row).index(biggest) == token
    return total, best


def wrong_by_hand(tokenizer, task, i):
    """Text of the wrong answer of row i, or None."""
    rows = task.rows
    if rows["wrong"][i] is not None:
        return rows["wrong"][i]
    prompt, answer = rows["prompt"][i], rows["answer"][i]
    want = ids_of(tokenizer, prompt, answer)[1]
    for step in range(1, len(rows)):
        other = rows["answer"][(i + step) % len(rows)]
        got = ids_of(tokenizer, prompt, other)[1]
        if other.strip() != answer.strip() and len(got) == len(want) and got != want:
            return other
    return None


def read(encoded, model=MODEL):
    """What a backend gives: log p of each target, and whether it is the argmax."""
    with torch.no_grad():
        log_p = model(torch.tensor(encoded.ids)).logits.log_softmax(-1).numpy()
    at = log_p[encoded.read_row, encoded.read_position]
    value = at[np.arange(len(at)), encoded.read_target]
    return value, at.argmax(-1) == encoded.read_target


@settings(max_examples=40, deadline=None)
@given(tasks(), st.sampled_from([PLAIN, WITH_BOS]))
def test_scores_equal_one_prompt_and_answer_at_a_time(task, tokenizer):
    """The same number alone and in a padded batch; catches a wrong space, a shifted position, a
    row shared that must not be, padding that leaks, a wrong default answer, a lost BOS."""
    scores = task.encode(tokenizer).score(*read(task.encode(tokenizer)))
    for i in range(len(task)):
        right, best = alone(tokenizer, task.rows["prompt"][i], task.rows["answer"][i])
        got = {name: value[i] for name, value in scores.items()}
        assert got["log_prob"] == pytest.approx(right, abs=CLOSE)
        assert got["correct"] == best
        other = wrong_by_hand(tokenizer, task, i)
        if other is None:
            assert math.isnan(got["logit_diff"]) and math.isnan(got["preferred"])
        else:
            wrong, _ = alone(tokenizer, task.rows["prompt"][i], other)
            assert got["logit_diff"] == pytest.approx(right - wrong, abs=CLOSE)
            assert got["preferred"] == (right > wrong)


@settings(max_examples=40, deadline=None)
@given(tasks(), st.sampled_from([PLAIN, WITH_BOS]))
def test_each_read_asks_the_context_that_the_definition_names(task, tokenizer):
    """No read more, none less, in prompt order; rows hold tok(prompt) + tok(answer) without its
    last token and share where one continues the other."""
    encoded = task.encode(tokenizer)
    got = [
        (int(p), bool(w), encoded.ids[r, : k + 1].tolist(), int(t))
        for p, w, r, k, t in zip(
            encoded.read_prompt,
            encoded.read_wrong,
            encoded.read_row,
            encoded.read_position,
            encoded.read_target,
            strict=True,
        )
    ]
    want, fed = [], []
    for i, (prompt, answer) in enumerate(
        zip(task.rows["prompt"], task.rows["answer"], strict=True)
    ):
        mine = []
        for is_wrong, text in ((False, answer), (True, wrong_by_hand(tokenizer, task, i))):
            if text is None:
                continue
            start, end = ids_of(tokenizer, prompt, text)
            want += [(i, is_wrong, start + end[:j], token) for j, token in enumerate(end)]
            mine.append(start + end[:-1])
        needed = [m for m in mine if not any(m != o and o[: len(m)] == m for o in mine)]
        distinct = [m for k, m in enumerate(needed) if m not in needed[:k]]
        fed += [(i, len(start), m) for m in distinct]
    assert got == want
    rows = [
        (int(p), int(n), encoded.ids[r, :length].tolist())
        for r, (p, n, length) in enumerate(
            zip(encoded.row_prompt, encoded.prompt_length, encoded.length, strict=True)
        )
    ]
    assert rows == fed
    assert encoded.ids.shape == (len(fed), max(len(m) for *_, m in fed))
    for row, length in zip(encoded.ids, encoded.length, strict=True):
        assert (row[length:] == tokenizer.pad_token_id).all()
    assert encoded.n_prompts == len(task) and encoded.n_rows == len(fed)
    assert encoded.cluster.tolist() == task.clusters.tolist()
    rights = [sum(i == p and not w for p, w, *_ in want) for i in range(len(task))]
    assert encoded.n_answer.tolist() == rights


@settings(max_examples=40, deadline=None)
@given(tasks(), st.data())
def test_a_subset_gives_the_numbers_of_the_whole(task, data):
    """Rows and reads renumbered wrongly, padding cut too short, clusters renumbered."""
    encoded = task.encode(PLAIN)
    n = encoded.n_prompts
    chosen = data.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=2 * n))
    part = encoded.subset(np.array(chosen))
    whole = encoded.score(*read(encoded))
    for name, value in part.score(*read(part)).items():
        np.testing.assert_allclose(value, whole[name][chosen], atol=CLOSE)
    assert part.cluster.tolist() == encoded.cluster[chosen].tolist()
    assert part.n_answer.tolist() == encoded.n_answer[chosen].tolist()
    assert part.ids.shape[1] == part.length.max()
    assert part.ids.dtype == part.read_row.dtype == np.int64
    mask = np.array([i in {c % n for c in chosen} for i in range(n)])
    by_mask, by_number = encoded.subset(mask), encoded.subset(np.flatnonzero(mask))
    assert by_mask.ids.tolist() == by_number.ids.tolist()
    assert by_mask.read_row.tolist() == by_number.read_row.tolist()


def test_a_subset_of_nothing_and_one_out_of_range():
    # A bool mask with no prompt must not crash a filter; a number too high must not be ignored.
    encoded = make([("a", "Paris", None), ("b", "Rome", None)]).encode(PLAIN)
    none = encoded.subset(np.zeros(2, dtype=bool))
    assert none.n_prompts == none.n_rows == len(none.read_row) == 0
    assert none.score(np.zeros((3, 0)), np.zeros((3, 0), dtype=bool))["log_prob"].shape == (3, 0)
    with pytest.raises(IndexError):
        encoded.subset(np.array([2]))


@settings(max_examples=40, deadline=None)
@given(tasks(), st.integers(0, 2**32 - 1), st.sampled_from([(), (3,), (4, 2)]))
def test_score_adds_up_any_numbers_over_leading_axes(task, seed, leading):
    """Python loops over variants; values of -inf stay with their own prompt."""
    encoded = task.encode(PLAIN)
    rng = np.random.default_rng(seed)
    shape = (*leading, len(encoded.read_row))
    log_prob = np.where(rng.random(shape) < 0.1, -np.inf, -5 * rng.random(shape)).astype(np.float32)
    top = rng.random(shape) < 0.7
    scores = encoded.score(log_prob, top)
    for index in np.ndindex(*leading):
        for prompt in range(encoded.n_prompts):
            right = wrong = 0.0
            best, compared = True, False
            for k in range(len(encoded.read_row)):
                if encoded.read_prompt[k] != prompt:
                    continue
                if encoded.read_wrong[k]:
                    wrong += float(log_prob[index][k])
                    compared = True
                else:
                    right += float(log_prob[index][k])
                    best = best and bool(top[index][k])
            difference = right - wrong if compared else math.nan
            preferred = math.nan if math.isnan(difference) else float(right > wrong)
            want = {
                "log_prob": right,
                "logit_diff": difference,
                "correct": float(best),
                "preferred": preferred,
            }
            for name, value in want.items():
                got = scores[name][(*index, prompt)]
                assert got == pytest.approx(value, rel=1e-12, nan_ok=True), name
    assert all(v.dtype == np.float64 for v in scores.values())
    assert all(v.shape == (*leading, encoded.n_prompts) for v in scores.values())


def test_float32_reads_are_added_in_double():
    # 400 tokens of -0.1 summed in float32 are off by 1e-5, which a patching effect can be.
    task = make([("x", "Rome " * 200, None)])
    encoded = task.encode(PLAIN)
    values = np.full(len(encoded.read_row), -0.1, dtype=np.float32)
    got = encoded.score(values, values < 0)["log_prob"][0]
    assert got == pytest.approx(len(values) * float(np.float32(-0.1)), rel=1e-14)


def test_score_is_fast_enough_for_a_sweep():
    # 540 variants of 200 prompts: 0.02 s of processor time; loops over both take seconds.
    task = make([(f"The capital of {i} is", f"{i} Paris", f"{i} Rome Berlin") for i in range(200)])
    encoded = task.encode(PLAIN)
    values = np.full((540, len(encoded.read_row)), -1.0)
    start = time.process_time()
    encoded.score(values, values < 0)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_the_same_number_alone_and_in_a_padded_batch(family):
    """In float32 on real classes: right padding needs no mask. 1e-5: other matmul shapes, 3 layers
    of float32."""
    model = tiny_model(family)
    long = "The capital of Germany is Berlin. The capital of Japan is Tokyo. The capital of Peru is"
    task = make([("People", "Paris", "Rome"), (long, "Lima", "Madrid"), ("One", "dog", "yen")])
    together = task.encode(PLAIN)
    assert together.length.min() < together.length.max() - 5  # there is padding to get wrong
    whole = together.score(*read(together, model))
    for i in range(3):
        single = task.select(np.array([i]), "one").encode(PLAIN)
        for name, value in single.score(*read(single, model)).items():
            np.testing.assert_allclose(value[0], whole[name][i], atol=1e-5)


def test_right_and_wrong_share_a_row_when_one_continues_the_other():
    # Three cases by hand: equal input, prefix of each, and different ones.
    one, two = ["Paris", "Italy"], ["Rome", "Lima"]  # tokens of each
    assert [len(PLAIN(" " + word).input_ids) for word in one + two] == [1, 1, 2, 2]
    for right, wrong, rows in (
        ("Paris", "Italy", 1),  # both need the prompt only
        ("Paris Italy", "Paris Chile", 1),
        ("Paris", "Paris Italy Chile", 1),
        ("Paris Italy Chile", "Paris", 1),
        ("Rome", "Paris", 1),  # one token needs no input of its own
        ("Rome", "Lima", 2),
        ("Paris Italy Chile", "Italy Chile Chile", 2),
    ):
        encoded = make([("The capital of x is", right, wrong)]).encode(PLAIN)
        assert encoded.n_rows == rows, (right, wrong)


def test_bos_is_the_tokenizers_own_and_never_a_second_one():
    bos = WITH_BOS.bos_token_id
    rows = [("People", "Rome Berlin", None)]
    assert make(rows).encode(WITH_BOS).ids[0].tolist().count(bos) == 1
    assert bos not in make(rows).encode(PLAIN).ids


def test_padding_token_falls_back_to_eos_and_then_zero():
    # pad_token_id 0 is a real one, though falsy; a tokenizer without any must not crash.
    rows = [("People", "Rome", None), ("The capital of France is", "Lima", None)]
    tokenizer = tiny_tokenizer()
    for pad, eos, want in (("<pad>", "</s>", 0), (None, "</s>", 2), (None, None, 0)):
        tokenizer.pad_token, tokenizer.eos_token = pad, eos
        assert make(rows).encode(tokenizer).ids[0, -1] == want


def test_the_default_wrong_answer_is_the_next_rows_and_goes_round():
    # Not the first row's, not the previous one's, not a longer one's, never the row's own answer.
    words = ["Paris", "Italy", "Rome", "Chile", "Chile", "Lima"]
    encoded = make([("x", word, None) for word in words]).encode(PLAIN)
    chosen = []
    for i in range(len(words)):
        reads = (encoded.read_prompt == i) & encoded.read_wrong
        chosen.append(PLAIN.decode(encoded.read_target[reads]).strip())
    assert chosen == ["Italy", "Chile", "Lima", "Paris", "Paris", "Rome"]


def test_a_tie_is_no_preference():
    encoded = make([("x", "Paris", "Italy")]).encode(PLAIN)
    assert encoded.score(np.array([-1.0, -1.0]), np.array([True, False]))["preferred"] == [0.0]


def test_a_tokenizer_that_pads_or_cuts_by_itself_is_told_not_to():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_padding(length=30)
    tokenizer.backend_tokenizer.enable_truncation(2)
    rows = [("The capital of France is", "Rome Berlin", None)]
    assert make(rows).encode(tokenizer).ids.tolist() == make(rows).encode(PLAIN).ids.tolist()


def test_what_has_no_tokens_is_named():
    # Byte-pair encoding without bytes and unknown token drops the letters that it lacks.
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, []))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)
    assert make([("a", "b", "c")]).encode(tokenizer).read_target.tolist() == [1, 2]
    for rows, words in (
        ([("a", "b", None), ("a", "zzz", None)], "t.csv: row 2: .* its answer"),
        ([("zzz", "b", None)], "t.csv: row 1: .* its prompt"),
        ([("a", "b", "zzz")], "t.csv: row 1: .* its wrong answer"),
        ([("", "b", None)], "t.csv: row 1: .* its prompt"),
    ):
        with pytest.raises(TaskError, match=words):
            make(rows).encode(tokenizer)


def test_an_empty_prompt_is_scored_after_a_bos():
    assert make([("", "Paris", None)]).encode(WITH_BOS).ids.tolist() == [[1]]


def test_right_and_wrong_that_differ_in_text_but_not_in_tokens_are_refused():
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    lower = tiny_tokenizer().backend_tokenizer
    lower.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=lower, pad_token="<pad>")
    with pytest.raises(TaskError, match=r"row 1: right and wrong answer are the same tokens"):
        make([("x", "Rome", "ROME")]).encode(tokenizer)
    # As a default wrong answer it is no other answer.
    encoded = make([("x", "Rome", None), ("y", "ROME", None)]).encode(tokenizer)
    assert not encoded.has_wrong.any()


def test_prompts_without_wrong_answer_are_said():
    encoded = make([("x", "Rome", None), ("y", "Rome Paris", None)]).encode(PLAIN)
    (note,) = encoded.notes
    assert note.startswith("2 of 2 prompts have no wrong answer")
    assert make([("x", "Rome", "Lima")]).encode(PLAIN).notes == ()
    assert encoded.has_wrong.tolist() == [False, False]


def test_default_wrong_answers_of_a_large_task_are_found_quickly():
    # Two answers in two blocks, as a sorted yes/no data set: 0.3 s; asking the tokenizer for each
    # pair of rows takes minutes.
    rows = [("p", "Paris", None)] * 1000 + [("q", "Italy", None)] * 1000
    start = time.process_time()
    encoded = make(rows).encode(PLAIN)
    assert isinstance(encoded, Encoded) and encoded.has_wrong.all()
    assert time.process_time() - start < 5
