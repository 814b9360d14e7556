"""A run's stored results against what the bundle says of them, by other code; then on the page."""

import shutil

import numpy as np
import pandas as pd
import pytest

from mechforget import checkpoints, measures
from mechforget.measures import Inputs
from mechforget.models import Loading
from mechforget.statistics.minibatches import summary
from mechforget.study.export import table as export
from mechforget.study.prompts import prompts
from mechforget.study.settings import study
from mechforget.study.store import Store
from mechforget.views.bundle import bundle
from tests import runs
from tests.tiny import tiny_model


def fill(store: Store) -> Store:
    """Every mechanism's result of the run's own pair, small, where it isn't there yet."""
    given = study(**store.manifest["settings"])
    pair = checkpoints.Pair(given.pre, given.post)
    on = lambda name: Inputs.of(pair, prompts(given, name), loading=Loading())  # noqa: E731
    inputs, new = on(given.task), on(given.new_task)
    twin = Inputs(inputs.post, inputs.pre, inputs.encoded)
    makers = {
        "drift": lambda: measures.drift(inputs),
        "control_twin/drift": lambda: measures.drift(twin),
        "interference": lambda: measures.interference(inputs, new=new.encoded, minibatches=4),
        "landscape/line": lambda: measures.loss_line(inputs, points=(0, 0.5, 1)),
        "landscape/line_new": lambda: measures.loss_line(new, points=(0, 0.5, 1)),
        "landscape/curvature": lambda: measures.curvature(inputs, prompts=4, probes=8, products=9),
        "landscape/sharpness": lambda: measures.sharpness(inputs, directions=3),
        "ledger": lambda: measures.ledger(inputs),
        "readout": lambda: measures.readout(inputs),
        "weights": lambda: measures.weights(pair),
    }
    for name, make in makers.items():
        if not store.has(name):
            store.put(name, make())
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mechanisms") / "run"
    shutil.copytree(runs.compared()[0], folder)
    return fill(Store(folder))


@pytest.fixture(scope="module")
def made(store):
    return bundle(store)


def test_drift_by_depth_and_head(store, made):
    """Medians over missing angles, before for after, another axis first, bounds in another order."""
    data, found = store.get("drift"), made["drift"]
    for depth in range(data.sizes["depth"]):
        here = data.isel(depth=depth)
        seen = [x for x in here.resid_angle.values if not np.isnan(x)]
        assert found["k"][depth] == len(seen)
        for name, want in (("angle_median", np.median), ("angle_largest", max)):
            value = found[name][depth]
            assert value == (pytest.approx(want(seen)) if seen else None)
        for bound, key in (("value", "value"), ("low", "low"), ("high", "high")):
            assert found["cka"][key][depth] == number(here.resid_cka.sel(bound=bound))
        for at in ("pre", "post"):
            assert found[f"rank_{at}"][depth] == number(here.resid_rank.sel(at=at))
        one = here.resid_shift
        clusters = [one.values[one.cluster.values == c] for c in np.unique(one.cluster)]
        assert found["shift"]["value"][depth] == pytest.approx(np.concatenate(clusters).mean())
        assert found["shift"]["low"][depth] <= found["shift"]["value"][depth]
    for site in ("z", "head_out"):
        head = data.sel(site=site, layer=2, head=1)
        mine = {k: v[2 * 4 + 1] for k, v in found["heads"][site].items() if k != "cka"}
        assert mine["angle_largest"] == number(head.head_angle.max())
        assert mine["rank_post"] == number(head.head_rank.sel(at="post"))
        assert mine["shift"] == pytest.approx(float(head.head_shift.mean()))
        assert found["heads"][site]["cka"]["low"][9] == number(head.head_cka.sel(bound="low"))
    twin = store.get("control_twin/drift").resid_cka.sel(bound="high").values
    assert found["twin"]["cka"]["high"][1:] == pytest.approx(twin[1:].tolist())


def number(array) -> float | None:
    return None if np.isnan(float(array)) else float(array)


def test_interference_sums_cells_before_it_compares(store, made):
    """Means of cells' cosines for the cosine of their sum, another layer's, a conflict rate of a
    matrix that isn't there, two families of q in one."""
    data, found = store.get("interference"), made["interference"]
    point = found["points"][0]
    task, seed = data.task.values, data.attrs["seed"]
    parts, spots = data.part.values, data.layer.values
    for i, name in enumerate(point["parts"]["names"]):
        total = sum(data.gram.values[0, c] for c in range(len(parts)) if name in ("all", parts[c]))
        want = summary(total[None], task, seed=seed)
        for key in ("cosine", "corrected", "conflict", "null_cosine", "null_conflict"):
            for end, x in zip(("value", "low", "high"), want[key], strict=True):
                if not (key.startswith("null") and end == "value"):
                    got = point["parts"][key][end][i]
                    assert got == (None if np.isnan(x[0]) else pytest.approx(x[0]))
        old, new = (np.flatnonzero(task == t) for t in ("old", "new"))
        products = [total[a, b] for a in old for b in new]
        assert point["parts"]["dot"]["value"][i] == pytest.approx(np.mean(products))
        assert point["parts"]["conflict"]["value"][i] == pytest.approx(
            np.mean(np.less(products, 0))
        )
    names, layers = point["map"]["names"], found["layers"]
    at = names.index("W_O") * len(layers) + 2
    total = data.gram.values[0, (parts == "W_O") & (spots == 2)].sum(0)
    assert point["map"]["cosine"]["value"][at] == pytest.approx(summary(total[None], task, draws=2)["cosine"][0][0])  # fmt: skip
    assert len(point["map"]["p"]) == len(names) * len(layers)
    assert all(q is None or q >= p for p, q in zip(point["map"]["p"], point["map"]["q"], strict=True))  # fmt: skip
    assert found["minibatches"] == {t: int((task == t).sum()) for t in ("old", "new")}


def test_ledger_sums_to_the_rise(store, made):
    """A part or layer that is left out or counted twice; groups' shares given to one head."""
    data, found = store.get("ledger"), made["ledger"]
    rise = -float(store.get("forgetting").score.sel(metric="log_prob").diff("at").mean())
    whole = dict(zip(found["whole"]["names"], found["whole"]["value"], strict=True))
    assert whole["change"] == pytest.approx(rise)
    total = sum(found["cells"]["value"]) + sum(found["rest"]["value"]) + whole["gap"]
    assert total == pytest.approx(rise)
    assert sum(found["by_part"]["value"]) == pytest.approx(sum(found["by_layer"]["value"]))
    n = len(found["layers"])
    for p, part in enumerate(found["parts"]):
        for layer in range(n):
            name, key = {"W_Q": ("heads", "matrix"), "W_O": ("heads", "matrix"), "W_K": ("groups", "kv_matrix"), "W_V": ("groups", "kv_matrix")}.get(part, ("mlps" if part == "MLP" else "others", ""))  # fmt: skip
            array = data[name].sel(layer=layer)
            array = array.sel({key: part}) if key else array
            want = float(array.sum([d for d in array.dims if d != "prompt"]).mean())
            assert found["cells"]["value"][p * n + layer] == pytest.approx(want, abs=1e-12)
    attention = sum(float(data[name].sum() / data.sizes["prompt"]) for name in ("heads", "groups"))
    assert sum(found["heads"]["value"]) == pytest.approx(attention)
    damaged = {a * 4 + b for a, b in runs.DAMAGED}
    best = sorted(range(len(found["heads"]["value"])), key=lambda i: -found["heads"]["value"][i])
    assert set(best[: len(damaged)]) == damaged


def test_origins_are_the_largest_of_the_export(store, made):
    """Another head's, small shares for large ones, a cell under another's name."""
    found, table = made["ledger"]["origins"], export(store, "origins")
    assert found["of"] == [table["of_layer"][0], table["of_head"][0]]
    assert found["change"] == pytest.approx(table["value"].sum())
    size = table["value"].abs().sort_values(ascending=False)
    assert np.abs(found["value"]) == pytest.approx(size[: len(found["cells"])].tolist())
    assert found["cells"] and all(found["value"])  # what hasn't moved isn't listed
    for i, name in enumerate(found["cells"]):
        row = table[np.isclose(table["value"], found["value"][i], rtol=1e-9, atol=0)].iloc[0]
        assert row["matrix"] in name and found["low"][i] == pytest.approx(row["low"])
        whose = [f"L{row['layer']} "] if pd.notna(row["layer"]) else []
        whose += [f"of {k} {row[k]}" for k in ("head", "group") if pd.notna(row.get(k))]
        assert all(part in name for part in whose), (name, whose)


def test_landscape_and_readout_hold_what_was_stored(store, made):
    """The new task's line as the old one's, after for before, errors of another estimate."""
    found = made["landscape"]
    for task, name in (("old", "landscape/line"), ("new", "landscape/line_new")):
        data = store.get(name)
        assert found["lines"][task]["loss"]["value"] == pytest.approx(
            data.loss.mean("prompt").values
        )
        assert found["lines"][task]["barrier"] == data.barrier.values.tolist()
    data = store.get("landscape/curvature")
    for key, error in (("trace", "trace_se"), ("gauss_newton", "gauss_newton_se")):
        for i, at in enumerate(("pre", "post")):
            assert found["curvature"][key]["value"][i] == float(data[key].sel(at=at))
            assert found["curvature"][key]["se"][i] == float(data[error].sel(at=at))
    ratio = float(data.trace.sel(at="post") / data.trace.sel(at="pre"))
    assert found["curvature"]["flattening"]["trace"][0] == pytest.approx(ratio)
    rise = store.get("landscape/sharpness").rise.sel(at="post").mean()
    assert found["sharpness"]["value"][1] == pytest.approx(float(rise))
    data, found = store.get("readout"), made["readout"]
    for probe in data.probe.values:
        want = data.score.sel(probe=probe).mean("prompt").transpose("depth").values
        assert found["probes"][probe]["value"] == pytest.approx(want)
    assert found["verdict"] == data.verdict.values.tolist()


def test_weights_of_a_group_are_its_heads(store, made):
    """K and V of another group; a column that holds groups where heads should be."""
    moved = store.get("weights").relative
    columns = made["heads"]["columns"]
    for matrix, heads_each in (("W_Q", 1), ("W_K", 2), ("W_V", 2), ("W_O", 1)):
        for layer in range(3):
            for head in range(4):
                want = float(moved.sel(matrix=matrix, layer=layer, head=head // heads_each))
                assert columns[f"moved_{matrix}"]["values"][layer * 4 + head] == want


def test_what_was_not_measured_says_which_command_fills_it(store, made, tmp_path):
    """A panel of None without a word; words beside numbers; a dense model asked for routing."""
    assert made["routing"] is None and "dense" in made["empty"]["routing"]
    assert not {"drift", "interference", "landscape", "ledger", "readout"} & made["empty"].keys()
    bare = Store(shutil.copytree(store.path, tmp_path / "run"))
    mechanisms = ("drift", "interference", "landscape", "ledger", "readout", "weights", "control")
    bare.manifest["finished"] = [
        n for n in bare.manifest["finished"] if not n.startswith(mechanisms)
    ]
    bare.manifest["model"]["experts"] = 4
    found = bundle(bare)
    for name in ("drift", "interference", "landscape", "ledger", "readout", "routing"):
        assert found[name] is None and f"--measures {name}" in found["empty"][name]


def test_a_screened_run_leaves_heads_out(store, tmp_path):
    """A head that was not run as the strongest, or as one without effect."""
    from mechforget.study.tables.effects import patching

    part = Store(shutil.copytree(store.path, tmp_path / "run"))
    data = part.get("patching/head_out")
    exact = {(0, 1), (1, 2), (2, 3)}
    run = np.array([[(a, b) in exact for b in range(4)] for a in range(3)])
    mask = data.effect.isel(metric=0, direction=0, prompt=0).copy(data=run)
    data["effect"] = data.effect.where(mask)
    part.manifest["finished"].remove("patching/head_out")
    part.put("patching/head_out", data)
    part.manifest["settings"]["screen"] = 3
    found = bundle(part)
    effect = found["patching"]["head_out"]["metrics"]["log_prob"]["restore"]["effect"]
    assert [i for i, e in enumerate(effect) if e is not None] == [1, 6, 11]
    assert {tuple(p["top_head"]) for p in found["prompts"] if p["top_head"]} <= exact
    assert found["meta"]["screen"] == 3
    assert patching(part)["effect"].isna().sum() > 0


def test_routing_of_a_mixture(store, tmp_path):
    """Loads before and after exchanged, layers and experts transposed, a dense model's words."""
    from tests.measures import toy

    models = (toy.opened(tiny_model("mixtral", seed), "nnsight") for seed in (1, 0))
    inputs = Inputs(*models, toy.encoded())
    part = Store(shutil.copytree(store.path, tmp_path / "run"))
    part.put("routing", measures.routing(inputs))
    part.put("routing_restored", measures.routing_restored(inputs))
    found = bundle(part)["routing"]
    data, restored = part.get("routing"), part.get("routing_restored")
    count = data.choices.sum("prompt")
    for at in ("pre", "post"):
        want = (count.sel(at=at) / count.sel(at=at).sum("expert")).transpose("layer", "expert")
        assert found[f"load_{at}"] == pytest.approx(want.values.ravel().tolist())
    assert np.allclose(found["load_change"], np.subtract(found["load_post"], found["load_pre"]))
    assert found["overlap"]["value"] == pytest.approx(data.overlap.mean("prompt").values.tolist())
    assert found["angle"][1 * 4 + 3] == float(data.angle.sel(expert=3).isel(layer=1))
    every = restored.every.sel(metric="log_prob", direction="break").mean()
    assert found["restored"]["break"]["every"]["value"] == [pytest.approx(float(every))]


def test_the_page_shows_it(store, made, show):
    """A real run's numbers that the page can't draw."""
    page = show(made)
    for name in ("drift", "interference", "landscape", "ledger", "readout", "agreement"):
        assert page.locator(f"#panel-{name} svg[data-figure]").count() > 0
    assert "agree in sign" in page.locator("#panel-trust").inner_text()
