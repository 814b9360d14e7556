"""What a run says of mechanisms: tables against the store, the damage that was done, each other."""

import csv
import io
import json

import numpy as np
import pytest
import scipy.stats

from mechforget.study import catalogue
from mechforget.study.export import table as export
from mechforget.study.store import Store
from mechforget.study.tables.claims import all_of, meets
from tests import runs
from tests.tiny import save_tiny

LEFT = ("landscape", "routing", "clean_corrupt", "patching_positions")  # not made by default


@pytest.fixture(scope="module")
def store():
    folder, said = runs.compared()
    assert said.code == 0, said.err
    return Store(folder)


def test_every_mechanism_is_exported(store):
    """Would catch: an export that breaks, one without a unit, infinite or doubled rows, one that is
    silently empty, and a missing one that isn't said in a line."""
    for name in catalogue.tables():
        if name in LEFT:
            said = runs.mechforget("export", store.path, name)
            assert said.code == 2 and f"has no {name}: add it to the measures" in said.err
            continue
        for form in ("csv", "json"):
            said = runs.mechforget("export", store.path, name, "--format", form)
            assert said.code == 0, said.err
            rows = (
                json.loads(said.out)
                if form == "json"
                else list(csv.DictReader(io.StringIO(said.out)))
            )
            assert len(rows) == len(export(store, name)) > 0
        table = export(store, name)
        assert not table.duplicated().any(), name
        numbers = table.select_dtypes("float")
        assert not np.isinf(numbers.to_numpy(float)).any(), name
        if {"value", "low", "high"} <= set(table):
            known = table.dropna(subset=["value", "low", "high"])
            assert (known["low"] <= known["value"] + 1e-9).all(), name
            assert (known["value"] <= known["high"] + 1e-9).all(), name


def test_the_ledger_adds_up_and_names_the_damaged_heads(store):
    """Would catch: rows that miss a part of the loss, and damage booked to another head."""
    table = export(store, "ledger")
    lost = export(store, "forgetting").set_index("metric").loc["log_prob", "change"]
    assert table["value"].sum() == pytest.approx(-lost, abs=1e-6)
    assert set(table["unit"]) == {"nats"}
    written = table[(table["value"].abs() > 1e-9) & (table["matrix"] != "rest")]
    assert set(written["matrix"]) == {"W_O"}
    at = set(zip(written["layer"].tolist(), written["head"].tolist(), strict=True))
    assert at == set(runs.DAMAGED)
    share = table["share"].sum()
    assert share == pytest.approx(1, abs=1e-6)


def test_weights_and_interference_and_attribution(store):
    """Would catch: another head's weights; sums over cells that aren't; estimates beside another
    head's exact effect."""
    heads = export(store, "weights")
    moved = heads[(heads["kind"] == "head") & (heads["relative"] > 0)]
    assert set(moved["matrix"]) == {"W_O"}
    assert set(zip(moved["layer"], moved["head"], strict=True)) == set(runs.DAMAGED)
    table = export(store, "interference")
    dots = table[(table["quantity"] == "dot") & (table["at"] == 0)]
    by_matrix = dots[dots["layer"].isna() & ~dots["matrix"].isin(["all"])]
    whole = dots.loc[dots["matrix"] == "all", "value"].item()
    assert by_matrix["value"].sum() == pytest.approx(whole, rel=1e-6)
    cells = dots[dots["cell"].notna() & (dots["matrix"] == "W_Q")]
    assert len(cells) == runs.LAYERS * runs.HEADS
    w_q = by_matrix.loc[by_matrix["matrix"] == "W_Q", "value"].item()
    assert cells["value"].sum() == pytest.approx(w_q, rel=1e-6)
    found = export(store, "attribution")
    keys = ["site", "metric", "direction", "layer", "head"]
    patched = export(store, "patching")[[*keys, "effect"]]
    both = found.merge(patched, on=keys)
    assert len(both) == len(found)
    np.testing.assert_allclose(both["exact"], both["effect"], atol=1e-9)


def test_agreement_and_the_road_from_written_to_expressed(store):
    """Would catch: a measure on the wrong head; a correlation outside its range; a head other than
    the most expressed one."""
    table = export(store, "agreement")
    assert len(table) == runs.LAYERS * runs.HEADS
    for name in ("ledger", "graft", "weights"):
        top = table.reindex(table[name].abs().sort_values(ascending=False).index)[:2]
        assert set(zip(top["layer"], top["head"], strict=True)) == set(runs.DAMAGED), name
    data = store.get("interference").isel(at=0)
    for row in table.itertuples():  # noise-corrected, from the sums that it is made of
        here = (data.layer == row.layer) & (data.unit == row.head) & data.part.isin(["W_Q", "W_O"])
        gram = data.gram.values[here.values].sum(0)
        old = data.task.values == "old"
        own = [(g.sum() - np.trace(g)) / (len(g) * (len(g) - 1)) for g in
               (gram[np.ix_(old, old)], gram[np.ix_(~old, ~old)])]  # fmt: skip
        want = np.nan
        if min(own) > 0:
            want = gram[np.ix_(old, ~old)].mean() / np.sqrt(own[0] * own[1])
        np.testing.assert_allclose(row.interference, want, rtol=1e-6)
    from mechforget.study.tables.agreement import correlations

    pairs = correlations(store)
    assert pairs["spearman"].dropna().between(-1, 1).all()
    one = pairs[(pairs["a"] == "ledger") & (pairs["b"] == "weights")]
    assert one["spearman"].item() > 0.9
    origins = export(store, "origins")
    best = table.loc[table["restore"].idxmax()]
    assert set(zip(origins["of_layer"], origins["of_head"], strict=True)) == {
        (best["layer"], best["head"])
    }


def test_claims_say_what_they_know_and_what_they_need(store):
    """Would catch: a claim without a verdict, one that is told from data that can't tell it, and
    one that doesn't say what it would need."""
    table = export(store, "claims")
    assert table["claim"].tolist() == list(range(1, 14))
    words = {"supported", "not supported", "cannot be told from this data"}
    assert set(table["verdict"]) <= words
    told = table[table["verdict"] != "cannot be told from this data"]
    assert (told["n"] > 0).all() and told["value"].notna().all()
    untold = set(table["claim"]) - set(told["claim"])
    assert {2, 3, 9, 10, 12, 13} <= untold
    assert table["why"].str.len().min() > 5 and table["how"].str.len().min() > 0


def test_a_claim_in_parts_is_refuted_by_one_and_needs_all():
    """Would catch: what cannot be told taken for the contrary."""
    yes, no, untold = "supported", "not supported", "cannot be told from this data"
    assert all_of(yes, yes) == yes and all_of(yes, untold) == untold == all_of(untold, untold)
    assert all_of(yes, no) == no == all_of(untold, no)


def test_a_mixture_of_experts_and_a_screened_run(tmp_path):
    """Would catch: routing that can't be exported, experts without a ledger, and a screen that says
    of heads which it never ran that they are exact."""
    pre, post = (save_tiny(tmp_path / n, "qwen3_moe", s) for n, s in (("pre", 0), ("post", 1)))
    run = tmp_path / "run"
    said = runs.mechforget(
        *("compare", pre, post, "--task", runs.task(), "--out", run, "--backend", "nnsight"),
        *("--measures", "patching,attribution,routing,ledger", "--screen", 5),
    )
    assert said.code == 0, said.err
    store = Store(run)
    routing = export(store, "routing")
    overlap = routing.loc[routing["quantity"] == "overlap", "value"]
    assert overlap.between(0, 1).all() and len(overlap) == 3
    ledger = export(store, "ledger")
    assert ledger["expert"].notna().sum() == 3 * 4 and "routing" in set(ledger["matrix"])
    lost = export(store, "forgetting").set_index("metric").loc["log_prob", "change"]
    assert ledger["value"].sum() == pytest.approx(-lost, abs=1e-6)
    patched = export(store, "patching")
    heads = patched[(patched["site"] == "head_out") & (patched["metric"] == "log_prob")]
    assert heads["effect"].notna().groupby(heads["direction"]).sum().tolist() == [5, 5]
    few = heads[(heads["direction"] == "restore") & heads["effect"].notna()]
    family = [*few["p"], *[1.0] * (12 - len(few))]  # those that weren't run count
    want = scipy.stats.false_discovery_control(family)[: len(few)]
    np.testing.assert_allclose(few["q"], want)
    assert not heads[heads["effect"].isna()]["significant"].any()


def test_a_wide_interval_supports_nothing():
    """Would catch: a claim that is called supported because an interval from nothing to everything
    holds the paper's range, and one that is called wrong while its interval holds it."""
    assert meets(0.2, 0.16, 0.22, 0.15, 0.23) == "supported"
    assert meets(0.2, -0.1, 0.9, 0.15, 0.23) == "cannot be told from this data"
    assert meets(0.4, 0.2, 0.6, 0.15, 0.23) == "cannot be told from this data"
    assert meets(0.5, 0.4, 0.6, 0.15, 0.23) == "not supported"
    assert meets(0.2, float("nan"), float("nan"), 0.15, 0.23) == "cannot be told from this data"


def test_all_leaves_out_what_the_task_lacks_and_a_name_is_refused(tmp_path):
    """Would catch: `--measures all` that ends because no prompt has a subject to swap."""
    pre, post = (save_tiny(tmp_path / n, seed=s) for n, s in (("pre", 0), ("post", 1)))
    task = tmp_path / "task.csv"
    task.write_text("prompt,answer\n" + "".join(f"Say {w}:,{w}\n" for w in ("one", "two", "six")))
    words = ("compare", pre, post, "--task", task, "--out", tmp_path / "run", "--measures")
    for name, lack in (("clean_corrupt", "no column 'subject' to swap"), ("readout", "3 distinct")):
        said = runs.mechforget(*words, f"forgetting,{name}")
        assert said.code == 2 and lack in said.err
        assert not (tmp_path / "run").exists()
    said = runs.mechforget(*words, "all")
    assert said.code == 0, said.err
    assert "clean_corrupt left out: " in said.out and "readout left out: " in said.out
    assert "not among the measures" not in said.err
