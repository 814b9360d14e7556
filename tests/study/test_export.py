"""What `export` promises: columns, keys, cells and numbers, against the store and plain hooks."""

import csv
import io
import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import xarray as xr

from mechforget.study.store import Store
from tests import oracle, runs
from tests.tiny import tiny_tokenizer

METRICS, DIRECTIONS = ("log_prob", "logit_diff", "correct"), ("restore", "break")
NUMBERS = "effect effect_low effect_high share share_low share_high p q significant".split()


@pytest.fixture(scope="module")
def run():
    folder, said = runs.compared()
    assert said.code == 0, said.err
    return folder


def exported(run, measure, *options):
    said = runs.mechforget("export", run, measure, *options)
    assert (said.code, said.err) == (0, "")
    return list(csv.DictReader(io.StringIO(said.out)))


def stored(run, name):
    return xr.open_zarr(run / "store.zarr", group=name, consolidated=False).load()


def keys(table, *names):
    return [tuple(row[n] for n in names) for row in table]


def test_columns_stand_in_the_promised_order(run):
    """Would catch a renamed, missing, moved or extra column."""
    assert list(exported(run, "patching")[0]) == [
        *"metric direction site layer head".split(),
        *NUMBERS,
    ]
    assert list(exported(run, "grafting")[0]) == [
        *"metric direction matrix layer head group".split(),
        *NUMBERS,
    ]
    first = "metric pre post change change_low change_high n".split()
    assert list(exported(run, "forgetting")[0])[:7] == first
    for measure in ("attention_change", "attention_roles", "logit_attribution"):
        assert list(exported(run, measure)[0])[-4:] == "value low high unit".split()


def test_what_is_stored_says_what_it_is(run):
    """Would catch a result of a study that lacks the units, names and settings which the same
    measure's result has when it is called in Python."""
    for name in Store(run).finished:
        if name == "patterns":  # kept for the report's drawings: no measure made it
            continue
        data = stored(run, name)
        assert {"measure", "source", "settings"} <= data.attrs.keys(), name
        assert isinstance(json.loads(data.attrs["settings"]), dict)
        for variable, array in data.data_vars.items():
            if array.dtype.kind in "biuf":
                assert array.attrs.get("units") and array.attrs.get("long_name"), (name, variable)
    assert json.loads(stored(run, "patching/head_out").attrs["settings"])["site"] == "head_out"


def test_exactly_one_row_for_every_key(run):
    """Would catch a doubled, dropped or misnumbered place: the keys come from the architecture."""
    layers, heads = [str(i) for i in range(runs.LAYERS)], [str(i) for i in range(runs.HEADS)]
    places = [
        *itertools.product(("z", "head_out"), layers, heads),
        *itertools.product(("attn_out", "mlp_out", "resid_post"), layers, [""]),
        ("unembed", "", ""),
    ]
    expected = [(m, d, *p) for m in METRICS for d in DIRECTIONS for p in places]
    found = keys(exported(run, "patching"), "metric", "direction", "site", "layer", "head")
    assert sorted(found) == sorted(expected)
    found = keys(exported(run, "grafting"), "metric", "direction", "matrix", "layer", "head")
    assert len(set(found)) == len(found)
    whole = {k[3:] for k in found if k[2] == "all"}
    assert whole == set(itertools.product(layers, heads))
    for matrix in "qkvo":  # only of the three heads asked for, the same three
        some = [k[3:] for k in found if k[:3] == ("log_prob", "break", matrix)]
        assert len(some) == 3 and set(some) >= {(str(a), str(b)) for a, b in runs.DAMAGED}
    assert [k[3:] for k in found if k[:3] == ("correct", "restore", "mlp")] == [
        (i, "") for i in layers
    ]
    assert [k[3:] for k in found if k[:3] == ("correct", "restore", "rest")] == [("", "")]
    metrics = [r["metric"] for r in exported(run, "forgetting")]
    assert sorted(metrics) == sorted([*METRICS, "preferred"])


def test_cells_are_integers_flags_and_numbers(run):
    """Would catch 3.0 for a layer, nan for a missing head, True for true, 0.1 for 0.1000...01."""
    for row in exported(run, "patching") + exported(run, "grafting"):
        for name in ("layer", "head"):
            assert row[name] == "" or row[name].isdigit()
        assert row["significant"] in ("true", "false")
        assert not {"nan", "NaN", "None", "<NA>", "inf"} & set(row.values())
        if "group" in row and row["head"]:
            assert int(row["group"]) == int(row["head"]) // (runs.HEADS // runs.GROUPS)
        for name in NUMBERS[:-1]:
            assert row[name] == "" or row[name] == repr(float(row[name]))


def test_effect_is_the_mean_over_prompts_of_what_is_stored(run):
    """Would catch a median, a rounded number, a swapped axis, a mean over clusters."""
    for row in exported(run, "patching"):
        if row["site"] == "unembed":
            continue
        data = stored(run, f"patching/{row['site']}").effect
        place = {"layer": int(row["layer"])} | ({"head": int(row["head"])} if row["head"] else {})
        values = data.sel(metric=row["metric"], direction=row["direction"], **place).values
        assert values.shape == (len(runs.PLACES),)
        assert math.isclose(float(row["effect"]), values.mean(), rel_tol=1e-12, abs_tol=1e-15)
        assert float(row["effect_low"]) <= float(row["effect"]) <= float(row["effect_high"])


def test_what_the_last_layer_leaves_is_its_own_row(run):
    """Would catch a wrong remainder: resid_post of the last layer and `unembed` are all of F."""
    table = {
        k: r
        for r in exported(run, "patching")
        if (k := (r["metric"], r["direction"], r["site"], r["layer"]))
    }
    lost = {r["metric"]: -float(r["change"]) for r in exported(run, "forgetting")}
    for metric, direction in itertools.product(METRICS, DIRECTIONS):
        last = table[metric, direction, "resid_post", str(runs.LAYERS - 1)]
        rest = table[metric, direction, "unembed", ""]
        assert float(last["effect"]) + float(rest["effect"]) == pytest.approx(
            lost[metric], abs=1e-12
        )


def test_shares_are_given_only_of_a_significant_loss(run):
    """Would catch dividing by a loss that is none; a mean of ratios; a share of another metric."""
    lost = {r["metric"]: r for r in exported(run, "forgetting")}
    assert lost["log_prob"]["significant"] == "true"
    assert lost["correct"]["significant"] == "false"  # else this test sees one side only
    for row in exported(run, "patching") + exported(run, "grafting"):
        f = lost[row["metric"]]
        shares = [row[n] for n in ("share", "share_low", "share_high")]
        if f["significant"] == "true":
            ratio = float(row["effect"]) / -float(f["change"])
            assert float(row["share"]) == pytest.approx(ratio, rel=1e-12, abs=1e-15)
        else:
            assert shares == ["", "", ""]
            assert row["significant"] == "false"


def test_q_is_benjamini_hochberg_over_the_places_of_one_site(run):
    """Would catch one family for all sites or metrics; a flag that ignores q or the floor."""
    lost = {r["metric"]: r for r in exported(run, "forgetting")}
    table = exported(run, "patching")
    for family in sorted(set(keys(table, "metric", "direction", "site"))):
        rows = [r for r in table if (r["metric"], r["direction"], r["site"]) == family]
        q = scipy.stats.false_discovery_control([float(r["p"]) for r in rows])
        np.testing.assert_allclose([float(r["q"]) for r in rows], q, rtol=1e-12)
        f = lost[family[0]]
        significant_loss = f["significant"] == "true"
        floor = 0.01
        if significant_loss and family[0] != "correct":
            floor = max(0.01, 0.01 * -float(f["change"]))
        for row in rows:
            found = float(row["q"]) <= 0.05 and abs(float(row["effect"])) > floor
            assert row["significant"] == str(found and significant_loss).lower()


@pytest.fixture(scope="module")
def hf():
    """Plain Hugging Face models and the log p of each answer, one prompt at a time."""
    pre, post = runs.load(runs.pre()), runs.load(runs.post())
    tokenizer = tiny_tokenizer()

    def score(logits_of):
        found = []
        for r in runs.rows():
            p, a = (tokenizer(t)["input_ids"] for t in (r["prompt"], " " + r["answer"]))
            ids = torch.tensor([p + a])
            logits = logits_of(ids)[0, len(p) - 1 : -1]
            rows = torch.log_softmax(logits.double(), -1)
            found.append(rows[range(len(a)), a].sum().item())
        return np.mean(found)

    return pre, post, score


def test_forgetting_is_plain_hugging_faces(run, hf):
    """Would catch wrong token positions, a swapped pair, prompts or tokens counted as n."""
    pre, post, score = hf
    row = exported(run, "forgetting")[0]
    before, after = score(lambda i: oracle.run(pre, i)), score(lambda i: oracle.run(post, i))
    assert row["metric"] == "log_prob" and row["n"] == str(len(runs.PLACES))
    assert float(row["pre"]) == pytest.approx(before, abs=1e-5)
    assert float(row["post"]) == pytest.approx(after, abs=1e-5)
    assert float(row["change"]) == pytest.approx(float(row["post"]) - float(row["pre"]), abs=1e-12)
    values = stored(run, "forgetting").score.sel(metric="log_prob")
    change = (values.sel(at="post") - values.sel(at="pre")).values.mean()
    assert float(row["change"]) == pytest.approx(change, abs=1e-15)
    assert float(row["change_low"]) < change < float(row["change_high"]) < 0


def test_a_head_of_each_map_is_plain_hooks(run, hf):
    """Would catch a swapped direction or sign, or z where head_out was promised, end to end."""
    pre, post, score = hf
    before, after = score(lambda i: oracle.run(pre, i)), score(lambda i: oracle.run(post, i))
    table = {
        tuple(r[n] for n in ("direction", "site", "layer", "head")): float(r["effect"])
        for r in exported(run, "patching")
        if r["metric"] == "log_prob"
    }
    for site, (layer, head) in itertools.product(("z", "head_out"), [*runs.DAMAGED, (2, 3)]):
        restored = score(lambda i: oracle.patched(post, pre, i, i, layer, site, head))  # noqa: B023
        broken = score(lambda i: oracle.patched(pre, post, i, i, layer, site, head))  # noqa: B023
        at = str(layer), str(head)
        assert table["restore", site, *at] == pytest.approx(restored - after, abs=1e-5)
        assert table["break", site, *at] == pytest.approx(before - broken, abs=1e-5)
    layer, head = runs.DAMAGED[0]
    restored = score(lambda i: oracle.run(oracle.grafted(post, pre, layer, head, "all"), i))
    found = {
        (r["layer"], r["head"]): float(r["effect"])
        for r in exported(run, "grafting")
        if (r["metric"], r["direction"], r["matrix"]) == ("log_prob", "restore", "all")
    }
    assert found[str(layer), str(head)] == pytest.approx(restored - after, abs=1e-5)


def test_grafting_finds_the_planted_heads_and_only_them(run):
    """Would catch grafts that leak into other heads, or land on another one."""
    for row in exported(run, "grafting"):
        if row["matrix"] not in ("all", "o") or row["metric"] != "log_prob":
            continue
        planted = (int(row["layer"]), int(row["head"])) in runs.DAMAGED
        assert (abs(float(row["effect"])) > 1e-4) == planted, row
    for row in exported(run, "grafting"):
        if row["matrix"] in "qkv" or row["matrix"] in ("mlp", "rest"):  # those were not damaged
            assert abs(float(row["effect"])) < 1e-6


@pytest.mark.parametrize("measure", ["patching", "grafting", "forgetting", "attention_change"])
def test_every_format_carries_the_same_numbers(run, tmp_path, measure):
    """Would catch a format that rounds (pandas' JSON keeps 15 decimals of a p), or loses a row."""
    table = exported(run, measure)
    assert runs.mechforget("export", run, measure, "--out", tmp_path / "a.csv").code == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == table
    said = runs.mechforget("export", run, measure, "--format", "json")
    assert said.err == ""
    as_json = json.loads(said.out)
    for form in ("parquet", "netcdf"):
        said = runs.mechforget("export", run, measure, "--format", form, "--out", tmp_path / form)
        assert (said.code, said.out, said.err) == (0, "", "")
    as_parquet = pd.read_parquet(tmp_path / "parquet")
    with xr.open_dataset(tmp_path / "netcdf") as netcdf:
        as_netcdf = netcdf.load()
    assert list(as_parquet) == list(table[0]) == list(as_json[0]) == list(as_netcdf)
    assert len(as_parquet) == len(as_json) == as_netcdf.sizes["row"] == len(table)
    for name in table[0]:
        cells = [row[name] for row in table]
        for cell, value in zip(cells, (row[name] for row in as_json), strict=True):
            assert _cell(value) == cell
        for cell, value in zip(cells, as_parquet[name], strict=True):
            assert _cell(None if pd.isna(value) else value) == cell
        for cell, value in zip(cells, as_netcdf[name].values, strict=True):
            missing = value == -1 if name in ("layer", "head", "group") else value != value
            flag = name == "significant"
            assert _cell(bool(value) if flag else None if missing else value) == cell


def _cell(value):
    """As the CSV writes it."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nonsense",), "unknown; want one of"),
        (
            ("patching_positions",),
            "has no patching_positions: add it to the measures; it has: forgetting",
        ),
        (("patching", "--format", "parquet"), "binary: give --out FILE"),
        (("patching", "--format", "netcdf"), "binary: give --out FILE"),
        (("patching", "--out", "/nonexistent/folder/a.csv"), "in a folder that exists"),
        (("patching", "--out", "/tmp"), "in a folder that exists"),
    ],
)
def test_what_cannot_be_exported_is_refused(run, words, says):
    """Would catch a traceback, half a file on stdout, or binary in a terminal."""
    said = runs.mechforget("export", run, *words)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert says in said.err
