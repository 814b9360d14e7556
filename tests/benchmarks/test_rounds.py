"""How times become ratios."""

import doctest

import pytest

from benchmarks import operators, page, rounds
from benchmarks.rounds import Agreement, Peer


@pytest.fixture
def clock(monkeypatch):
    """Time passes only where a test says so."""
    now = [0.0]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(rounds.time, "monotonic", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    return spend


def peer(spend, costs, *, prepare=0.0, asked=None):
    def run(parts):
        if asked is not None:
            asked.append(list(parts))
        spend(sum(costs[i] for i in parts))
        return parts

    return Peer(
        "theirs", run, lambda a, b, parts: Agreement("", 0.0), lambda: spend(prepare), costs
    )


def test_a_sample_is_multiplied_by_its_share_of_the_work(clock):
    """Catches a sample that stands for the whole, parts that all count the same, and what is
    prepared once being multiplied, too."""
    costs = [float(30 - i) for i in range(30)]
    theirs = peer(clock, costs, prepare=5.0)
    found = rounds.run(lambda: clock(10.0), [theirs], lambda: 1e9, "cpu")
    assert found["peers"]["theirs"]["ran"] < found["peers"]["theirs"]["of"] == 30
    for one in found["rounds"]:
        assert one["peers"]["theirs"] == pytest.approx(5.0 + sum(costs))
        assert one["ours"] == 10.0


def test_fast_loops_run_whole_and_slow_ones_evenly(clock):
    """Catches a sample of the first layers only, and one of a loop that takes no time."""
    for each, n in ((0.001, 30), (2.0, 3), (100.0, 1)):
        asked = []
        rounds.run(lambda: clock(40.0), [peer(clock, [each] * 30, asked=asked)], lambda: 1, "cpu")
        assert len(asked[-1]) == n
        assert abs(sum(asked[-1]) / n - 14.5) <= 0.5


def test_rounds_end_after_a_while_and_there_are_two(clock):
    """Catches a single round, whose ratio has no range, and a row without end."""
    for seconds, n in ((100.0, 2), (25.0, 3), (1.0, 5)):
        found = rounds.run(lambda s=seconds: clock(s), [], lambda: 1, "cpu")
        assert len(found["rounds"]) == n


def test_the_page_takes_ratios_by_round_and_the_larger_bound():
    """Catches a ratio of medians, ours over theirs, and a bound that forgets reading."""
    row = {
        "flops": 100.0,
        "bytes": 30.0,
        "rounds": [
            {"ours": 2.0, "rate": 100.0, "peers": {"a": 8.0}},
            {"ours": 4.0, "rate": 50.0, "peers": {"a": 12.0}},
        ],
    }
    assert page.ratios(row, "a") == [4.0, 3.0]
    assert page.of_bound(row, {"read": 1e9}) == [2.0, 2.0]
    assert page.of_bound(row, {"read": 10.0}) == [2 / 3, 4 / 3]
    assert page.of_bound(row | {"flops": None, "bytes": None}, {"read": 1.0}) == []


@pytest.mark.parametrize("module", [operators, page, rounds], ids=lambda module: module.__name__)
def test_examples(module):
    """Catches an example that says something else than what the function does."""
    done = doctest.testmod(module)
    assert done.attempted and not done.failed
