"""Ours and theirs in turn, several times: the ratio of each round is of one moment's machine.

A loop that takes minutes runs some of its layers only, evenly spread, and its time is multiplied by
the share of the work that they are. What it prepares once is counted once.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.machine import synchronize

LEAST, MOST = 2, 5  # rounds
LONG = 60.0  # seconds of a row after which no further round begins
SAMPLE = 6.0  # seconds of a peer's run in one round


@dataclass(frozen=True)
class Agreement:
    """kind: largest difference, or rank correlation. scale: the largest value that is compared."""

    kind: str
    value: float
    scale: float = 0.0
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Peer:
    """Another way to the same numbers. run(parts) runs some of the parts; costs: their relative
    cost, one part: all or nothing. agree(ours, theirs, parts) compares."""

    name: str
    run: Callable[[Sequence[int]], Any]
    agree: Callable[[Any, Any, Sequence[int]], Agreement]
    prepare: Callable[[], None] = field(default=lambda: None)
    costs: Sequence[float] = (1.0,)
    parts: str = "layers"


def spread(parts: int, chosen: int) -> list[int]:
    """So many of the parts, evenly spread.

    >>> spread(30, 3), spread(4, 4)
    ([5, 15, 25], [0, 1, 2, 3])
    """
    return [int((i + 0.5) * parts / chosen) for i in range(chosen)]


def chosen(peer: Peer, sample: float, device: str) -> list[int]:
    """As many parts as fit in so many seconds, reckoned from one of them."""
    parts = len(peer.costs)
    if parts == 1:
        return [0]
    peer.prepare()
    middle = spread(parts, 1)
    each = timed(lambda: peer.run(middle), device)[1] / peer.costs[middle[0]]
    fit = int(sample / max(each * sum(peer.costs) / parts, 1e-9))
    return spread(parts, min(max(fit, 1), parts))


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    synchronize(device)
    start = time.perf_counter()
    found = work()
    synchronize(device)
    return found, time.perf_counter() - start


def run(
    ours: Callable[[], Any],
    peers: Sequence[Peer],
    rate: Callable[[], float],
    device: str,
    *,
    quick: bool = False,
) -> dict[str, Any]:
    """{"rounds": [{"ours": s, "rate": FLOP/s, "peers": {name: s}}], "peers": {name: …}}."""
    sample = 1e9 if quick else SAMPLE  # tiny models run whole
    samples = {peer.name: chosen(peer, sample, device) for peer in peers}
    rounds: list[dict[str, Any]] = []
    said: dict[str, dict[str, Any]] = {}
    start = time.monotonic()
    while len(rounds) < (1 if quick else LEAST) or (
        not quick and len(rounds) < MOST and time.monotonic() - start < LONG
    ):
        mine, seconds = timed(ours, device)
        beside = rate()
        spent: dict[str, float] = {}
        for peer in peers if len(rounds) % 2 == 0 else list(reversed(peers)):
            parts = samples[peer.name]
            once = timed(peer.prepare, device)[1]
            theirs, ran = timed(lambda peer=peer, parts=parts: peer.run(parts), device)
            share = sum(peer.costs[i] for i in parts) / sum(peer.costs)
            spent[peer.name] = once + ran / share
            if peer.name not in said:
                said[peer.name] = {
                    "ran": len(parts),
                    "of": len(peer.costs),
                    "parts": peer.parts,
                    "agreement": vars(peer.agree(mine, theirs, parts)),
                }
        rounds.append({"ours": seconds, "rate": beside, "peers": spent})
    return {"rounds": rounds, "peers": said}
