"""Every number of the mechanisms' panels against the bundle, and their controls."""

import numpy as np
import pytest

from tests.views.reading import cells, full, hash_of, one_number, rows, three
from tests.views.synthetic import bundle


def said(page, panel: str, n: int = 0) -> str:
    return page.locator(f"#panel-{panel} .readout").nth(n).inner_text().replace("\xa0", " ")


def within(low, high) -> str:
    return f"{three(low)} to {three(high)}"


def column(out: list[dict], name: str) -> list[float | None]:
    return [one_number(r[name]) for r in out]


def test_drift(show):
    """A depth off by one, the twin's numbers as the pair's, a head of another site."""
    data = full()
    found = data["drift"]
    page = show(data, "#head=L11H4")
    text, d = said(page, "drift"), 12
    assert f"After layer 11: CKA {three(found['cka']['value'][d])} ({within(found['cka']['low'][d], found['cka']['high'][d])}), seed twin {three(found['twin']['cka']['value'][d])} (" in text  # fmt: skip
    assert f"largest {three(found['angle_largest'][d])}°; effective rank {three(found['rank_pre'][d])} → {three(found['rank_post'][d])}" in text  # fmt: skip
    page.locator("#panel-drift").get_by_role("slider").fill("3")
    assert hash_of(page)["head"] == "L3H4"  # one selection for all panels
    assert page.locator("#panel-heads [role=gridcell]").get_attribute("aria-label").startswith("L3H4")  # fmt: skip
    head = found["heads"]["head_out"]
    assert f"L3H4, what the head writes: CKA {three(head['cka']['value'][31])}" in said(page, "drift", 1)  # fmt: skip
    page.locator("#panel-drift").get_by_role("button", name="inside the head (z)").click()
    assert f"L3H4, inside the head (z): CKA {three(found['heads']['z']['cka']['value'][31])}" in said(page, "drift", 1)  # fmt: skip
    out = rows(page, "drift")
    stream = [r for r in out if r["what"] == "stream"]
    assert [r["layer"] for r in stream] == ["", *map(str, range(30))]
    assert column(stream, "cka_high") == found["cka"]["high"]
    assert column([r for r in out if "twin" in r["what"]], "angle_largest") == found["twin"]["angle_largest"]  # fmt: skip
    assert column([r for r in out if r["what"] == "z"], "shift") == found["heads"]["z"]["shift"]


def test_lines_are_drawn_where_their_numbers_are(show):
    """A curve upside down, a band of another curve, a gap that is drawn through."""
    data = bundle(6, 3)
    found = data["drift"]
    found["cka"] = {"value": [None, 0.9, 0.8, None, 0.6, 0.5, 0.4], "low": [None, 0.8, 0.7, None, 0.5, 0.4, 0.3], "high": [None, 1.0, 0.9, None, 0.7, 0.6, 0.5]}  # fmt: skip
    page = show(data)
    figure = page.locator("#panel-drift svg[data-figure]").first
    path = figure.locator("path.curve").get_attribute("d")
    runs = [[tuple(map(float, p.split(","))) for p in run.split("L")] for run in path.split("M")[1:]]  # fmt: skip
    assert [len(r) for r in runs] == [2, 3]  # the gap stays a gap
    (x, y) = zip(*[p for run in runs for p in run], strict=True)
    for drawn, numbers in ((x, [1, 2, 4, 5, 6]), (y, [0.9, 0.8, 0.6, 0.5, 0.4])):
        slope, start = np.polyfit(numbers, drawn, 1)
        assert np.allclose(slope * np.array(numbers) + start, drawn, atol=0.06)
    assert slope < 0


@pytest.mark.parametrize(("label", "number"), [("cosine", "cosine"), ("cosine, noise-corrected", "corrected"), ("conflict rate", "conflict")])  # fmt: skip
def test_interference(show, label, number):
    """Another quantity's interval or chance band, matrices and layers transposed."""
    data = full()
    point = data["interference"]["points"][1]
    page = show(data, "#head=L20H0")
    panel = page.locator("#panel-interference")
    panel.get_by_role("button", name=label, exact=True).click()
    panel.get_by_role("button", name="after", exact=True).click()
    names = point["parts"]["names"]
    seen = panel.locator(".estimate").evaluate_all("g => g.map(x => [x.querySelector('text').textContent.trim(), +x.querySelector('circle').getAttribute('cx'), x.querySelector('.sure') !== null, x.querySelector('.band') !== null])")  # fmt: skip
    assert [s[0] for s in seen] == names
    values = np.array(point["parts"][number]["value"])
    slope, start = np.polyfit(values, [s[1] for s in seen], 1)
    assert slope > 0 and np.allclose(slope * values + start, [s[1] for s in seen], atol=1e-6)
    ends = panel.locator(".estimate g line").evaluate_all(
        "l => l.map(x => ['x1', 'x2'].map(k => +x.getAttribute(k)))"
    )
    for i, end in enumerate(("low", "high")):
        want = slope * np.array(point["parts"][number][end]) + start
        assert np.allclose([e[i] for e in ends], want, atol=1e-6)
    assert [s[2] for s in seen] == [q <= 0.05 for q in point["parts"]["q"]]
    assert [s[3] for s in seen] == [number != "corrected"] * len(names)
    grid = panel.get_by_role("gridcell")
    grid.focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    i = 3 * 30 + 20  # W_O of layer 20
    here = point["map"]
    want = f"W_O of layer 20: {label} {three(here[number]['value'][i])} ({within(here[number]['low'][i], here[number]['high'][i])})"  # fmt: skip
    assert want in said(page, "interference") and f"q {three(here['q'][i])}" in said(page, "interference")  # fmt: skip
    assert grid.get_attribute("aria-label").startswith(want)
    page.keyboard.press("ArrowRight")
    assert hash_of(page)["head"] == "L21H0"
    out = [r for r in rows(page, "interference") if r["at"] == "1" and r["layer"] != ""]
    assert column(out, number) == here[number]["value"]
    assert [(r["matrix"], int(r["layer"])) for r in out][31] == (here["names"][1], 1)


def test_harm_has_one_colour(show):
    """A conflict rate above one half in the colour of agreement."""
    data = bundle(4, 3)
    point = data["interference"]["points"][0]
    n = len(point["map"]["p"])
    point["map"]["corrected"]["value"] = [-0.3] + [0.0] * (n - 1)
    point["map"]["conflict"]["value"] = [1.0] + [0.5] * (n - 1)
    page = show(data)
    panel = page.locator("#panel-interference")
    for name in ("cosine, noise-corrected", "conflict rate"):
        panel.get_by_role("button", name=name, exact=True).click()
        fills = panel.locator(".cells rect").evaluate_all(
            "c => c.slice(0, 2).map(r => r.getAttribute('fill'))"
        )
        assert fills == ["rgb(33, 102, 172)", "rgb(247, 247, 247)"]


def test_landscape(show):
    """The tasks exchanged, a point off by one, a barrier where there is none."""
    data = full()
    found = data["landscape"]
    page = show(data)
    panel = page.locator("#panel-landscape")
    panel.get_by_role("slider").fill("7")
    old, new = (found["lines"][k]["loss"] for k in ("old", "new"))
    assert said(page, "landscape") == f"old task {three(old['value'][7])} nats ({within(old['low'][7], old['high'][7])}); new task {three(new['value'][7])} nats ({within(new['low'][7], new['high'][7])})"  # fmt: skip
    box = panel.locator("svg .hit").bounding_box()
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 40)
    page.mouse.down()  # a drag along the path
    page.mouse.move(box["x"] + 8 + 0.3 * (box["width"] - 12), box["y"] + 40, steps=3)
    page.mouse.up()
    assert said(page, "landscape").startswith(f"old task {three(old['value'][3])} nats")
    table = {r[0]: r[1:] for r in cells(panel.locator("table"))}
    two, ratio = (
        found["curvature"]["gauss_newton"],
        found["curvature"]["flattening"]["gauss_newton"],
    )
    assert table["Gauss–Newton trace"] == [f"{three(two['value'][0])}\n±{three(two['se'][0])}", f"{three(two['value'][1])}\n±{three(two['se'][1])}", f"{three(ratio[0])}\n{within(*ratio[1:])}"]  # fmt: skip
    assert table["barrier of the old task, nats"][0] == "0.310, at 0.800 of the way\n0.180 to 0.470"
    assert table["barrier of the new task, nats"][0].startswith("none")
    out = rows(page, "landscape")
    assert column([r for r in out if r["what"] == "loss, new task"], "value") == new["value"]
    assert [float(r["standard_error"]) for r in out if r["what"] == "sharpness"] == found["sharpness"]["se"]  # fmt: skip


def test_ledger(show):
    """Parts in each other's colour, bars that don't stack from zero, a layer's sum elsewhere."""
    data = bundle(4, 3)
    found = data["ledger"]
    found["cells"]["value"] = [0.1 * (p + 1) * (-1 if p == 2 else 1) for p in range(6) for _ in range(4)]  # fmt: skip
    found["origins"] = {"of": [2, 1], "change": 0.5, "cells": ["L0 W_V of group 1", "L1 W_in"], "value": [0.25, -0.125], "low": [0.2, None], "high": [0.3, None]}  # fmt: skip
    page = show(data, "#head=L1H2")
    reach = page.locator("#panel-ledger table.reach tbody tr").evaluate_all("r => r.map(x => [...x.cells].map(c => c.textContent.trim()))")  # fmt: skip
    assert reach == [["L0 W_V of group 1", "+0.250", "0.200 to 0.300"], ["L1 W_in", "−0.125", "no interval"]]  # fmt: skip
    assert "L2H1, the head that restores most" in page.locator("#panel-ledger").inner_text()
    bars = page.locator("#panel-ledger rect.part[class*='part-']:not(.part-rest)").evaluate_all("r => r.filter(x => x.closest('[data-figure]')).map(x => [+x.getAttribute('class').slice(-1), +x.getAttribute('x'), +x.getAttribute('y'), +x.getAttribute('height')])")  # fmt: skip
    assert len(bars) == 24
    first = sorted(b for b in bars if b[1] == min(x[1] for x in bars))
    assert [b[0] for b in first] == list(range(6))
    height = np.array([b[3] for b in first])
    assert np.allclose(height / height[0], [1, 2, 3, 4, 5, 6])
    zero = first[0][2] + first[0][3]
    assert first[2][2] == pytest.approx(zero)  # below zero
    assert first[1][2] + first[1][3] == pytest.approx(first[0][2])  # on top of the one before
    assert first[3][2] + first[3][3] == pytest.approx(first[1][2])  # the negative one not between
    by = found["by_layer"]
    assert said(page, "ledger").startswith(f"Layer 1: {three(by['value'][1], True)} nats ({within(by['low'][1], by['high'][1])}): W_Q +0.100, W_K +0.200, W_V −0.300")  # fmt: skip
    heads = found["heads"]
    assert said(page, "ledger", 1).startswith(f"L1H2: {three(heads['value'][5], True)} nats ({within(heads['low'][5], heads['high'][5])})")  # fmt: skip
    out = rows(page, "ledger")
    assert column([r for r in out if r["what"] == "layer and part"], "nats") == found["cells"]["value"]  # fmt: skip
    assert {r["part"]: float(r["nats"]) for r in out if r["what"] == "no layer"} == dict(zip(found["rest"]["names"], found["rest"]["value"], strict=True))  # fmt: skip
    assert column([r for r in out if r["what"] == "head"], "low") == heads["low"]
    assert column([r for r in out if r["what"] == "reaches L2H1"], "nats") == [0.25, -0.125]


def test_readout(show):
    """Another depth's verdict, probes exchanged, an axis that hides how far from certain they are."""
    data = full()
    found = data["readout"]
    found["verdict"][18] = "partly erased"
    page = show(data, "#head=L17H0")
    panel = page.locator("#panel-readout")
    assert panel.locator(".word").inner_text() == "After layer 17: partly erased"
    seen = panel.locator(".estimate").evaluate_all("g => g.map(x => [...x.querySelectorAll('text')].map(t => t.textContent.trim()))")  # fmt: skip
    want = zip(
        ("before", "as is", "aligned", "refit", "chance"), found["probes"].values(), strict=True
    )
    assert [s[:2] for s in seen] == [[label, f"{b['value'][18]:.4f}"] for label, b in want]
    panel.get_by_role("slider").fill("2")
    assert panel.locator(".word").inner_text() == f"After layer 2: {found['verdict'][3]}"
    out = [r for r in rows(page, "readout") if r["probe"] == "refit"]
    assert column(out, "low") == found["probes"]["refit"]["low"]
    assert [r["verdict"] for r in out] == found["verdict"]


def test_routing(show):
    """Experts and layers transposed in the map or in the export; after as before."""
    data = bundle(5, 3, experts=4)
    found = data["routing"]
    page = show(data, "#head=L3H0")
    grid = page.locator("#panel-routing").get_by_role("gridcell")
    grid.focus()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    i = 3 * 4 + 2
    assert said(page, "routing", 1) == f"Expert 2 of layer 3: {three(100 * found['load_pre'][i])} % → {three(100 * found['load_post'][i])} % of all choices; its gate turned by {three(found['angle'][i])}°"  # fmt: skip
    found["load_change"] = [0.0] * 20
    found["load_change"][i] = 0.1
    restored = found["restored"]["restore"]["layer"]
    fills = show(data).locator("#panel-routing .cells rect").evaluate_all("c => c.map(r => r.getAttribute('fill'))")  # fmt: skip
    assert [k for k, f in enumerate(fills) if f == "rgb(179, 88, 6)"] == [2 * 5 + 3]
    assert f"its routing restores {three(restored['value'][3], True)} nats" in said(page, "routing")
    out = [r for r in rows(page, "routing") if r["expert"] != ""]
    assert column(out, "load_post") == found["load_post"]
    page = show(bundle(5, 3))
    assert "dense" in page.locator("#panel-routing .empty").inner_text()


def test_agreement_is_symmetric(show):
    """A pair's number in another pair's cell; an interval that isn't its own."""
    data = full()
    found = data["agreement"]
    page = show(data)
    panel = page.locator("#panel-agreement")
    assert panel.locator(".cells rect").count() == 8 * 7
    shown = panel.locator("svg[data-figure] > g > g > text").all_text_contents()
    by = {(p["a"], p["b"]): p for p in found["pairs"]}
    want = [by.get((a, b)) or by.get((b, a)) for a in found["names"] for b in found["names"] if a != b]  # fmt: skip
    numbers = [("−" if p["spearman"] < 0 else "") + f"{abs(p['spearman']):.2f}".removeprefix("0") for p in want]  # fmt: skip
    assert [t for t in shown if t.lstrip("−").startswith((".", "1."))] == numbers
    grid = panel.get_by_role("gridcell")
    grid.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")  # from restore, break to dla_change, break
    p = by["break", "dla_change"]
    assert f"{three(p['spearman'], True)} ({within(p['low'], p['high'])}) over 270 heads" in said(page, "agreement")  # fmt: skip
    assert column(rows(page, "agreement"), "spearman") == [p["spearman"] for p in found["pairs"]]


def test_claims(show):
    """A verdict beside another claim, a number where nothing can be told, a command that is lost."""
    data = full()
    page = show(data)
    panel = page.locator("#panel-claims")
    seen = cells(panel.locator("table"))[1:]
    assert len(seen) == 13
    for row, claim in zip(seen, data["claims"], strict=True):
        assert row[:3] == [str(claim["claim"]), claim["text"], claim["paper"]]
        assert row[4].endswith(claim["verdict"]) and row[5] == claim["why"]
        if claim["value"] is None:
            assert row[3] == "–"
        else:
            assert row[3].startswith(three(claim["value"]))
            assert row[3].endswith(f"{within(claim['low'], claim['high'])}, n = {claim['n']}")
    button = panel.get_by_role("button", name="How claim 4 is tested")
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    assert panel.locator("code").all_inner_texts() == [data["claims"][3]["how"]]
    assert "5 supported, 2 not, 6 cannot be told" in panel.locator(".help").inner_text()
    assert [r["verdict"] for r in rows(page, "claims")] == [c["verdict"] for c in data["claims"]]


def test_screened_and_estimated_maps_say_so(show):
    """A head that wasn't patched that looks as if it had no effect; an estimate without the word."""
    data = full()
    data["meta"]["screen"] = 40
    for numbers in data["patching"]["head_out"]["metrics"]["log_prob"].values():
        for values in numbers.values():
            values[40:] = [None] * 230
    page = show(data)
    text = page.locator("#panel-heads .help").inner_text()
    assert "40 of 270 heads are exact" in text
    assert page.locator("#panel-heads .missing").get_attribute("d").count("M") == 230
    page.locator("#panel-heads .choice", has_text="estimated").get_by_role("button").click()
    text = page.locator("#panel-heads .help").inner_text()
    assert text.startswith("Estimated") and "exact" not in text
    assert hash_of(page)["site"] == "estimate:head_out"
    assert "Estimated" not in show(full()).locator("#panel-heads .help").inner_text()
