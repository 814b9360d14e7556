"""What the verdict says of its own weak points."""

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from mechforget.study.verdict import _doubt, verdict

ALL = {(m, d) for m in ("log_prob", "logit_diff", "correct") for d in ("restore", "break")}


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (ALL, ""),
        (set(), ", not significant"),
        (ALL - {("log_prob", "restore")}, ", not significant"),
        ({("log_prob", "restore")}, ", under restore and log_prob alone"),
        ({("log_prob", "restore"), ("log_prob", "break")}, ", under log_prob alone"),
        ({("log_prob", "restore"), ("correct", "restore")}, ", under restore alone"),
        ({("log_prob", "restore"), ("logit_diff", "break")}, ", under restore and log_prob alone"),
    ],
)
@pytest.mark.parametrize("role", ["expressed", "written"])
def test_a_finding_under_one_metric_or_direction_is_given_with_that_word(role, seen, said):
    """Catches another site's or matrix's significance that lends itself to the headline."""
    of, name, other = ("site", "head_out", "z") if role == "expressed" else ("matrix", "all", "q")
    rows = [
        {of: which, "metric": m, "direction": d, "significant": which == other or (m, d) in seen}
        for which in (name, other)
        for m, d in ALL
    ]
    assert _doubt(pd.DataFrame(rows), role) == said


@pytest.mark.parametrize(
    ("change", "low", "high", "significant", "said"),
    [
        (
            1.0,
            0.5,
            2.0,
            True,
            "rose significantly, by 1 nats (0.5 to 2, n = 16, sign flips p = 0.06)",
        ),
        (
            -1.0,
            -2.0,
            -0.5,
            False,
            "fell insignificantly, by 1 nats (0.5 to 2, n = 16, sign flips p",
        ),
        (0.5, -1.0, 2.0, False, "rose insignificantly, by 0.5 nats (−1 to 2, n = 16, sign flips p"),
    ],
)
def test_the_interval_is_of_what_is_said(change, low, high, significant, said, monkeypatch):
    """Catches a rise of 1 nat that lies between -2 and -0.5, and an interval that leaves 0 out beside
    `insignificantly` with no p that says why."""
    row = {"metric": "log_prob", "pre": -3.0, "post": -3.0 + change, "change": change}
    row |= {"change_low": low, "change_high": high, "n": 16, "p": 0.06, "significant": significant}
    rows = [row, *({**row, "metric": m, "change": 0.1} for m in ("logit_diff", "correct"))]
    monkeypatch.setattr("mechforget.study.verdict.forgetting", lambda store: pd.DataFrame(rows))
    store: Any = SimpleNamespace(manifest={}, checkpoints=1, has=lambda name: False)
    assert f"log p of the old task's answers {said}" in verdict(store).sentence
