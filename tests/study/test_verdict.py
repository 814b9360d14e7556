"""What the verdict says of its own weak points."""

import pandas as pd
import pytest

from mechforget.study.verdict import _doubt

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
