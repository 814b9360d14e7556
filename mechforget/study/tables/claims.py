"""The paper's claims held against a run: what was measured, how sure that is, and what is missing.

The claims are those of "Mechanistic Analysis of Catastrophic Forgetting in Large Language Models
During Continual Fine-tuning", arXiv 2601.18699. Its numbers are claims to be tested, never targets.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.measures.forgetting import change
from mechforget.measures.landscape import flattening
from mechforget.statistics import caveat, interval, percentiles
from mechforget.statistics.bootstrap import FEWEST
from mechforget.study.store import Store
from mechforget.study.tables.effects import patching
from mechforget.study.tables.forgetting import forgetting, forgotten
from mechforget.study.tables.frames import once
from mechforget.study.tables.interference import interference

if TYPE_CHECKING:
    import pandas as pd

YES, NO, UNTOLD = "supported", "not supported", "cannot be told from this data"
COMPARE = "mechforget compare PRE POST --task OLD --new-task NEW"
SEVERE, DRAWS = 0.05, 500


@dataclass(frozen=True)
class Found:
    """The answer to one claim; NaN where there is no number."""

    verdict: str
    why: str
    how: str
    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    n: int = 0
    unit: str = ""


@once
def claims(store: Store) -> "pd.DataFrame":
    """One row per claim: claim, text, paper, value, low, high, n, unit, verdict, why, how."""
    import pandas as pd

    rows: Any = []
    for number, (text, paper, judge) in CLAIMS.items():
        rows.append({"claim": number, "text": text, "paper": paper, **asdict(judge(store))})
    order = ["claim", "text", "paper", "value", "low", "high", "n", "unit", "verdict", "why", "how"]
    return pd.DataFrame(rows, columns=order)


def _lacks(what: str, measure: str) -> Found:
    return Found(UNTOLD, f"needs {what}", f"{COMPARE} --measures {measure}")


def meets(value: float, low: float, high: float, least: float, most: float) -> str:
    """Whether an estimate agrees with the paper's range. It does not if its interval lies outside.
    It does if it lies inside and its interval excludes 0. Otherwise this cannot be told."""
    if np.isnan(low) or np.isnan(high):
        return UNTOLD
    if high < least or low > most:
        return NO
    return YES if least <= value <= most and low > 0 else UNTOLD


def _mechanisms(store: Store) -> Found:
    names = {"interference": "interference", "drift": "drift", "landscape/curvature": "landscape"}
    missing = [short for name, short in names.items() if not store.has(name)]
    if missing:
        return Found(
            UNTOLD,
            f"needs {', '.join(missing)} of the same pair",
            f"{COMPARE} --control-twin TWIN --measures all",
        )
    seen = {
        "gradient interference in attention": _conflict(store),
        "drift in the middle layers beyond a seed twin's": _drifts(store),
        "a flatter landscape": _flatter(store).verdict,
    }
    words = {YES: "seen", NO: "the contrary is seen", UNTOLD: "cannot be told"}
    said = "; ".join(f"{name}: {words[verdict]}" for name, verdict in seen.items())
    return Found(
        all_of(*seen.values()),
        said + " (seen together isn't driving: see the agreement between mechanisms)",
        f"{COMPARE} --control-twin TWIN --measures all",
        value=float(list(seen.values()).count(YES)), n=3, unit="mechanisms of 3",
    )  # fmt: skip


def all_of(*verdicts: str) -> str:
    """The verdict on a claim with several parts: all must hold, and one contradicted part is enough
    against it."""
    return NO if NO in verdicts else YES if set(verdicts) == {YES} else UNTOLD


def _conflict(store: Store) -> str:
    """Whether a product of the two tasks' gradients is negative in W_Q, W_K, W_V or W_O."""
    table: Any = interference(store)
    here = table[(table["quantity"] == "dot") & (table["at"] == 0) & table["layer"].isna()]
    here = here[here["matrix"].isin(["W_Q", "W_K", "W_V", "W_O"])]
    sure = here.loc[here["p"] <= 0.05 / 4, "value"]
    return YES if (sure < 0).any() else NO if (sure > 0).any() else UNTOLD


def _drifts(store: Store) -> str:
    if not store.has("control_twin/drift"):
        return UNTOLD
    mine, twin = (store.get(name)["resid_cka"] for name in ("drift", "control_twin/drift"))
    middle = _middle(mine.sizes["depth"])
    low, high = (float(mine[middle].sel(bound=b).mean()) for b in ("low", "high"))
    noise = float(twin[middle].sel(bound="value").mean())
    return YES if high < noise else NO if low > noise else UNTOLD


def _middle(n: int) -> slice:
    """The middle third of the depths."""
    return slice(n // 3, n - n // 3)


def _pairs(needed: str) -> Callable[[Store], Found]:
    def judge(store: Store) -> Found:
        return Found(
            UNTOLD,
            f"one pair of tasks was run; needs {needed}",
            "mechforget train SEQUENCE.toml for each pair, then measures.against_forgetting",
            n=1, unit="task pairs",
        )  # fmt: skip

    return judge


def _query_key(store: Store) -> Found:
    if not store.has("interference"):
        return _lacks("the new task's gradients", "interference")
    table: Any = interference(store)
    here = table[(table["quantity"] == "conflict") & (table["at"] == 0)]
    here = here[here["layer"].isna() & (here["matrix"] != "all")].set_index("matrix")
    mine = here.loc[[m for m in ("W_Q", "W_K") if m in here.index]]
    rest = here.drop(index=["W_Q", "W_K", "embed", "unembed", "final", "other"], errors="ignore")
    mine, rest = (some.dropna(subset=["value"]) for some in (mine, rest))
    if not (len(mine) and len(rest)):
        return Found(
            UNTOLD,
            "no gradient reaches W_Q and W_K on prompts of one token",
            f"{COMPARE} --few-shot 2",
        )
    top = rest["value"].idxmax()
    worst = mine["value"].idxmin()
    gap = float(mine.loc[worst, "value"] - rest.loc[top, "value"])
    low = float(mine.loc[worst, "low"] - rest.loc[top, "high"])
    high = float(mine.loc[worst, "high"] - rest.loc[top, "low"])
    verdict = YES if low > 0 else NO if high < 0 else UNTOLD
    return Found(
        verdict,
        f"conflict rate of {worst} less that of {top}, the largest of the others; intervals of "
        "the two added up",
        f"{COMPARE} --measures interference",
        gap, low, high, int((store.get("interference").task.values == "old").sum()), "rate",
    )  # fmt: skip


def _disrupted(store: Store) -> Found:
    if not store.has("patching/head_out"):
        return _lacks("patching of every head", "patching")
    table = forgetting(store)
    if not forgotten(table, "log_prob"):
        return Found(UNTOLD, "nothing was significantly forgotten", COMPARE)
    data = store.get("patching/head_out").effect.sel(metric="log_prob", direction="restore")
    if bool(data.isnull().any()):
        return Found(UNTOLD, "this run was screened: not every head was patched", COMPARE)
    effect = data.transpose("layer", "head", "prompt").values
    lost = change(store.get("forgetting").score).sel(metric="log_prob").values
    heads: Any = patching(store)
    heads = heads[(heads["site"] == "head_out") & (heads["metric"] == "log_prob")]
    heads = heads[heads["direction"] == "restore"].set_index(["layer", "head"])["significant"]
    sure = heads.unstack("head").to_numpy(bool)
    n = len(np.unique(data.cluster.values))
    if n < FEWEST:
        return Found(UNTOLD, str(caveat(n)), COMPARE)
    third = max(1, len(effect) // 3)

    def severe_on(prompts: np.ndarray) -> np.ndarray:
        """Shares of heads: of all, of the lowest and the highest third, and their difference."""
        mean, f = abs(effect[..., prompts].mean(-1)), lost[prompts].mean()
        severe = sure & (mean >= SEVERE * abs(f))
        ends = severe[:third].mean(), severe[-third:].mean()
        return np.array([severe.mean(), *ends, ends[0] - ends[1]])

    found, lows, highs = percentiles(severe_on, data.cluster.values, draws=DRAWS)
    value, low_third, high_third, _ = found.tolist()
    low, high = float(lows[0]), float(highs[0])
    lower_more = YES if lows[3] > 0 else NO if highs[3] < 0 else UNTOLD
    return Found(
        all_of(meets(value, low, high, 0.15, 0.23), lower_more),
        f"significant heads whose head_out moves at least 5 % of the loss; {low_third:.0%} in the "
        f"lowest third of layers, {high_third:.0%} in the highest",
        f"{COMPARE} --measures patching",
        value, low, high, n, "share of heads",
    )  # fmt: skip


def _cka(store: Store) -> Found:
    if not store.has("drift"):
        return _lacks("activations before and after", "drift")
    data = store.get("drift")
    middle = data["resid_cka"][_middle(data.sizes["depth"])]
    fall = {b: 1 - float(middle.sel(bound=b).mean()) for b in ("value", "low", "high")}
    few = f"; {data.attrs['caveat']}" if data.attrs.get("caveat") else ""
    return Found(
        meets(fall["value"], fall["high"], fall["low"], 0.32, 0.47),
        f"1 - unbiased CKA, mean over the middle third of depths{few}",
        f"{COMPARE} --measures drift",
        fall["value"], fall["high"], fall["low"], int(data.attrs["n"]), "1",
    )  # fmt: skip


def _rotation(store: Store) -> Found:
    if not store.has("drift"):
        return _lacks("activations before and after", "drift")
    data = store.get("drift")
    each = data["resid_angle"].median("angle").values
    each = each[np.isfinite(each)]
    if not len(each):
        return Found(UNTOLD, "no subspace stands out of rounding", f"{COMPARE} --measures drift")
    low, high = float(each.min()), float(each.max())
    return Found(
        meets(float(np.median(each)), low, high, 35, 52),
        "median principal angle; the ends are the depths' smallest and largest, no interval of "
        "prompts",
        f"{COMPARE} --measures drift",
        float(np.median(each)), low, high, int(data.attrs["n"]), "degrees",
    )  # fmt: skip


def _flatter(store: Store) -> Found:
    if not store.has("landscape/curvature"):
        return _lacks("Hessians at both ends", "landscape")
    ratio = flattening(store.get("landscape/curvature")).ratio.sel(quantity="trace")
    value, low, high = (float(x) for x in ratio.values)
    verdict = UNTOLD if np.isnan(low) else YES if high < 1 else NO if low > 1 else UNTOLD
    return Found(
        verdict,
        "post / pre of the Hessian's trace; the interval is of the estimate, on these prompts",
        f"{COMPARE} --measures landscape",
        value, low, high, int(store.get("landscape/curvature").sizes["probe"]), "ratio",
    )  # fmt: skip


def _mitigation(what: str) -> Callable[[Store], Found]:
    def judge(store: Store) -> Found:
        return Found(
            UNTOLD, f"needs {what} beside plain fine-tuning, at equal loss on the new task", "–"
        )

    return judge


def _gates(store: Store) -> Found:
    if not store.has("routing"):
        return Found(
            UNTOLD, "needs a mixture of experts", f"{COMPARE} --backend nnsight --measures routing"
        )
    data = store.get("routing")
    js = data.js.mean("layer")
    value, low, high = (float(x) for x in interval(js.values, data.cluster.values))
    moved = float(1 - data.overlap.mean())
    return Found(
        UNTOLD if np.isnan(low) else YES if low > 0 and moved > 0 else NO,
        f"mean divergence of the gates, old task; {moved:.1%} of the choices changed",
        f"{COMPARE} --backend nnsight --measures routing",
        value, low, high, len(np.unique(data.cluster.values)), "bit",
    )  # fmt: skip


def _disperse(store: Store) -> Found:
    if not (store.has("attention_change") and store.has("drift")):
        return _lacks("attention patterns and activations", "attention_change,drift")
    data = store.get("attention_change")
    entropy = data.entropy.sel(at="post", drop=True) - data.entropy.sel(at="pre", drop=True)
    early = entropy[: max(1, entropy.sizes["layer"] // 3)].mean(["layer", "head"])
    value, low, high = (float(x) for x in interval(early.values, data.cluster.values))
    rank = store.get("drift")["resid_rank"]
    deep = rank[rank.sizes["depth"] // 3 :].mean("depth")
    falls = float(deep.sel(at="post") - deep.sel(at="pre"))
    rises = YES if low > 0 else NO if high < 0 else UNTOLD
    collapse = YES if falls < 0 else NO if falls >= 0 else UNTOLD  # NaN
    return Found(
        all_of(rises, collapse),
        f"change of attention entropy in the lowest third of layers; the effective rank of deeper "
        f"layers changed by {falls:+.2g} directions",
        f"{COMPARE} --measures attention_change,drift",
        value, low, high, len(np.unique(data.cluster.values)), "bit",
    )  # fmt: skip


def _trajectories(store: Store) -> Found:
    n = store.checkpoints + 1
    return Found(
        UNTOLD,
        f"{n} checkpoints of one run; needs sequences of both regimes, at least three checkpoints "
        "each",
        "mechforget train SEQUENCE.toml, then measures.weights(mf.Sequence([...]))",
        n=n, unit="checkpoints",
    )  # fmt: skip


CLAIMS: dict[int, tuple[str, str, Callable[[Store], Found]]] = {
    1: ("gradient interference in attention, drift in intermediate layers and a flattening "
        "landscape drive forgetting", "three mechanisms", _mechanisms),
    2: ("forgetting correlates with task similarity and gradient alignment", "r = 0.87",
        _pairs("at least 6 tasks")),
    3: ("forgetting is larger where the tasks' gradients oppose", "2.4 times",
        _pairs("at least 5 pairs on each side")),
    4: ("query and key matrices have the highest gradient conflict rate", "W_Q and W_K",
        _query_key),
    5: ("some attention heads are severely disrupted, lower layers more", "15 to 23 % of heads",
        _disrupted),
    6: ("CKA falls in the middle layers", "0.32 to 0.47", _cka),
    7: ("features rotate", "35 to 52 degrees", _rotation),
    8: ("the landscape flattens around the old task's minimum", "flatter", _flatter),
    9: ("targeted regularisation or realignment recovers, selective freezing keeps", "47 %, 71 %",
        _mitigation("runs of these mitigations")),
    10: ("routing gates of mixtures of experts drift", "they do", _gates),
    11: ("early heads disperse, deeper representations collapse", "entropy up, rank down",
         _disperse),
    12: ("weight-space trajectories across a sequence separate the regimes", "they do",
         _trajectories),
    13: ("Low-Rank Circuit Projection mitigates", "up to 94.2 %",
         _mitigation("a run with the projection")),
}  # fmt: skip
