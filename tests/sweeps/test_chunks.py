"""Prompts in chunks: whatever fits, the numbers are the same and nothing is done twice."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from mechforget.errors import SweepError
from mechforget.sweeps.chunks import FIXED, max_tokens, out_of_memory, over_prompts
from mechforget.tasks.encoded import Encoded
from tests.sweeps.test_plan import spec

NO_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"


def encoded(lengths):
    """Prompts of these lengths; every third has two rows, the second one longer."""
    row_prompt = np.repeat(np.arange(len(lengths)), [1 + (i % 3 == 2) for i in range(len(lengths))])
    second = np.r_[False, row_prompt[1:] == row_prompt[:-1]]
    length = np.array(lengths)[row_prompt] + second
    ids = np.zeros((len(length), length.max()), int)
    for row, (n, prompt) in enumerate(zip(length, row_prompt, strict=True)):
        ids[row, :n] = 1 + prompt
    return Encoded(
        ids=ids,
        length=length,
        row_prompt=row_prompt,
        prompt_length=length,
        read_row=np.arange(len(length)),
        read_position=length - 1,
        read_target=np.zeros(len(length), int),
        read_prompt=row_prompt,
        read_wrong=second,
        cluster=np.arange(len(lengths)) // 2,
    )


class Recorder:
    """A measure that says which prompt it saw, by its tokens, and what was asked of it."""

    def __init__(self, limit=np.inf, wrong=None):
        self.limit, self.wrong, self.seen, self.cells = limit, wrong, [], []

    def __call__(self, chunk):
        batch = chunk.encoded
        if self.wrong:
            raise self.wrong
        if batch.ids.size > self.limit or chunk.max_tokens > 4 * self.limit:
            raise RuntimeError(NO_MEMORY)
        self.seen += chunk.prompts.tolist()
        self.cells.append(batch.ids.size)
        who = np.array([batch.ids[batch.row_prompt == p].max() - 1 for p in range(batch.n_prompts)])
        assert (who == chunk.prompts).all()
        return xr.Dataset(
            {"who": ("prompt", who), "twice": (("k", "prompt"), np.stack([who, 2 * who]))},
            coords={"cluster": ("prompt", batch.cluster), "k": [0, 1]},
        )


class Kept:
    def __init__(self):
        self.chunks = []

    def finished(self):
        return list(self.chunks)

    def add(self, chunk):
        self.chunks.append(chunk)


def run(batch, measure, **more):
    return over_prompts(batch, measure, spec=spec(), variants=2, label="test", **more)


def complete(found, n):
    np.testing.assert_array_equal(found.prompt, np.arange(n))
    np.testing.assert_array_equal(found.who, np.arange(n))
    np.testing.assert_array_equal(found.twice, np.stack([np.arange(n), 2 * np.arange(n)]))
    np.testing.assert_array_equal(found.cluster, np.arange(n) // 2)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=15), st.floats(1e-7, 1e-3))
def test_any_budget_gives_every_prompt_once_in_its_place(lengths, memory):
    """Catches prompts lost, doubled or left in the order of their lengths."""
    measure = Recorder()
    complete(run(encoded(lengths), measure, memory=memory), len(lengths))
    assert sorted(measure.seen) == list(range(len(lengths)))


def test_prompts_of_like_length_go_together_and_fit_the_budget():
    """Catches padding short prompts to the longest, and chunks larger than was allowed."""
    lengths = [12, 2, 11, 3, 12, 2, 2, 3] * 4
    batch, measure = encoded(lengths), Recorder()
    memory = 5e-4
    run(batch, measure, memory=memory)
    longest = [batch.length[batch.row_prompt == p].max() for p in measure.seen]
    assert longest == sorted(longest) and len(measure.cells) > 3
    budget = max_tokens(spec(), memory, batch.ids.shape[1])
    # A base and two variants; one prompt more would not have fitted (two rows of 13 tokens).
    assert budget - 3 * 26 <= 3 * max(measure.cells[:-1]) <= budget
    assert len(measure.cells) < batch.ids.size * 3 / budget  # padding is what it saves
    fewer = Recorder()
    run(batch, fewer, memory=1.0)
    # 2 or 3 tokens, 3 or 4 (the longer rows of some), and 11 to 13: padding costs less than a pass.
    assert len(fewer.cells) == 3 and 3 * (sum(fewer.cells) - batch.length.sum()) < 2 * FIXED


def test_the_budget_counts_memory():
    """Catches bits for bytes: 1 GB holds 2.5e8 floats, a token of this shape takes 1,608."""
    tokens = max_tokens(spec(), 1.0, 50)
    assert tokens == int(2.5e8 / (24 * 32 + 4 * 4 * 50 + 400 / 50))
    assert max_tokens(spec(), 0, 50) == 1


@pytest.mark.parametrize("limit", [400, 90, 30])
def test_out_of_memory_halves_and_goes_on(limit):
    """Catches a run that dies, starts over, or keeps a chunk that failed."""
    lengths, kept, measure = [12, 2, 11, 3] * 6, Kept(), Recorder(limit)
    complete(run(encoded(lengths), measure, keep=kept), len(lengths))
    assert sorted(measure.seen) == list(range(len(lengths)))
    assert sum(c.sizes["prompt"] for c in kept.chunks) == len(lengths)
    assert max(measure.cells) <= limit


def test_memory_that_runs_out_late_repeats_no_finished_prompt():
    """Catches prompts that are measured again, and doubled, after a later and wider chunk failed."""
    lengths, measure = [2] * 6 + [12] * 6, Recorder()

    def late(chunk):
        if chunk.encoded.ids.size > 60:
            raise RuntimeError(NO_MEMORY)
        return measure(chunk)

    complete(run(encoded(lengths), late), len(lengths))
    assert sorted(measure.seen) == list(range(12)) and measure.seen[0] < 6


def test_when_nothing_fits_it_says_so_and_real_errors_are_raised():
    """Catches an endless loop, and bugs that are taken for a lack of memory."""
    with pytest.raises(SweepError, match="out of memory with one prompt and one variant: use") as e:
        run(encoded([5, 6]), Recorder(limit=0))
    assert isinstance(e.value.__cause__, RuntimeError)
    for wrong in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("z")):
        with pytest.raises(type(wrong)) as e:
            run(encoded([5, 6]), Recorder(wrong=wrong))
        assert e.value is wrong
    assert out_of_memory(MemoryError()) and out_of_memory(RuntimeError("CUDA out of memory."))
    assert not out_of_memory(RuntimeError("device-side assert triggered"))


def test_a_packed_row_that_does_not_fit_is_cut():
    """Catches packing that needs more memory than the prompts would one by one."""
    batch = encoded([6] * 12)
    alike = Encoded(**{**vars(batch), "ids": np.where(batch.ids > 0, 1 + np.arange(7), 0)})
    alike.ids[:, 5] = 10 + alike.row_prompt  # they differ in the sixth token
    wide = replace(spec(), nodes=99)
    widths = {}
    for memory in (1.0, 2e-4, 5e-5):
        seen = []

        def measure(chunk, seen=seen):
            seen.append(chunk.encoded.fed.shape[1])
            return xr.Dataset({"who": ("prompt", chunk.prompts)})

        how = dict(spec=wide, variants=2, label="test", memory=memory)
        found = over_prompts(alike, measure, **how)
        assert found.who.values.tolist() == list(range(12))
        widths[memory] = max(seen)
    assert widths[1.0] > widths[2e-4] >= widths[5e-5] >= 6


def test_finished_chunks_are_not_run_again():
    """Catches a resumed run that repeats work, or gives a chunk's numbers to other prompts, also
    when the memory is another one the second time."""
    lengths, kept = [12, 2, 11, 3, 7] * 5, Kept()
    batch = encoded(lengths)

    class Killed(Recorder):
        def __call__(self, chunk):
            if len(self.cells) == 3:
                raise KeyboardInterrupt
            return super().__call__(chunk)

    first = Killed()
    with pytest.raises(KeyboardInterrupt):
        run(batch, first, memory=2e-4, keep=kept)
    assert 0 < len(first.seen) < len(lengths) and len(kept.chunks) == 3
    second = Recorder()
    complete(run(batch, second, memory=4e-4, keep=kept), len(lengths))
    assert sorted(first.seen + second.seen) == list(range(len(lengths)))
    third = Recorder()
    complete(run(batch, third, keep=kept), len(lengths))
    assert not third.seen
