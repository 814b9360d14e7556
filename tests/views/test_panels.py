"""The panels: every number against the bundle, the linked selection, keyboard, exports, empty states."""

import base64
import csv
import functools
import gzip
import io
import json
import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.views.synthetic import bundle

SIZES = [1360, 1000, 400]


@functools.cache
def _written(**shape: Any) -> str:
    return json.dumps(bundle(**shape))


def full(**shape: Any) -> dict[str, Any]:
    """30 layers of 9 heads, 24 prompts, unless said; made once, a copy for each test."""
    return json.loads(_written(**shape))


def three(x: float | None, sign: bool = False) -> str:
    """Three significant digits and a true minus, by Python's own formatting."""
    if x is None:
        return "–"
    text = "0" if x == 0 else f"{abs(x):#.3g}".rstrip(".")
    if 0 < abs(x) < 1e-4:
        digits, power = f"{abs(x):.2e}".split("e-0")
        text = f"{digits}×10⁻{'⁰¹²³⁴⁵⁶⁷⁸⁹'[int(power)]}"
    return ("−" if x < 0 else "+" if sign and x > 0 else "") + text


def stats(data: dict, site: str = "head_out", metric: str = "log_prob", direction: str = "restore"):
    group = data["grafting"] if site.startswith("graft:") else data["patching"]
    return group[site.removeprefix("graft:")]["metrics"][metric][direction]


def largest(data: dict, **which: str) -> list[int]:
    effect = stats(data, **which)["effect"]
    return sorted(range(len(effect)), key=lambda i: -abs(effect[i]))


def downloaded(page: Any, panel: str, kind: str) -> Path:
    with page.expect_download() as event:
        page.locator(f"#panel-{panel}").get_by_role("button", name=kind, exact=True).click()
    assert event.value.suggested_filename == f"{panel}.{kind.lower()}"
    return Path(event.value.path())


def rows(page: Any, panel: str) -> list[dict[str, str]]:
    """A panel's CSV, read by Python's own reader."""
    return list(csv.DictReader(io.StringIO(downloaded(page, panel, "CSV").read_text("utf-8"))))


def cells(table: Any) -> list[list[str]]:
    return table.evaluate("t => [...t.rows].map(r => [...r.cells].map(c => c.innerText.trim()))")


def hash_of(page: Any) -> dict[str, str]:
    return dict(part.split("=") for part in page.url.split("#")[1].split("&"))


def heat(page: Any) -> Any:
    return page.locator("#panel-heads [role=gridcell]")


def one_number(value: str | None) -> float | None:
    return None if value == "" else float(value)


# ---------------------------------------------------------------------------------------- numbers


def test_verdict(show):
    """A figure, interval, control, p or n that is dropped, rounded wrongly or put in another's place."""
    data = full()
    page = show(data)
    panel = page.locator("#panel-verdict")
    assert panel.locator(".sentence").inner_text() == data["verdict"]["sentence"]
    for figure, seen in zip(
        data["verdict"]["figures"], panel.locator(".figure").all(), strict=True
    ):
        parts = seen.inner_text().split("\n")
        assert parts == [figure[k] for k in ("value", "label", "interval", "control")]
    for f, seen in zip(data["forgetting"], cells(panel.locator("table"))[1:], strict=True):
        unit = f" {f['unit']}" if f["unit"] else ""
        assert seen == [f["task"], f["metric"].replace("_", " ") + unit, three(f["pre"]), three(f["post"]), three(f["change"], True), f"{three(f['low'])} to {three(f['high'])}", three(f["p"]), str(f["n"])]  # fmt: skip
    for row, f in zip(rows(page, "verdict"), data["forgetting"], strict=True):
        assert (float(row["pre"]), float(row["change_low"]), row["significant"] == "true") == (f["pre"], f["low"], f["significant"])  # fmt: skip


@pytest.mark.parametrize(
    ("site", "metric", "direction"),
    [
        ("head_out", "log_prob", "restore"),
        ("z", "correct", "break"),
        ("graft:v", "log_prob", "break"),
    ],
)
def test_map_holds_the_bundles_numbers(show, site, metric, direction):
    """Layer and head swapped, another site's or direction's numbers, rounding in the export."""
    data = full()
    page = show(data, f"#site={site}&metric={metric}&direction={direction}")
    want = stats(data, site, metric, direction)
    name = site.replace("graft:", "graft ")
    out = [r for r in rows(page, "heads") if r["site"] == name]
    assert [(int(r["layer"]), int(r["head"])) for r in out] == [(i // 9, i % 9) for i in range(270)]
    for column, key in (("effect", "effect"), ("effect_low", "low"), ("effect_high", "high"), ("share", "share"), ("share_low", "share_low"), ("p", "p"), ("q", "q")):  # fmt: skip
        assert [one_number(r[column]) for r in out] == want[key]
    assert [r["significant"] for r in out] == [{None: ""}.get(s, str(s).lower()) for s in want["significant"]]  # fmt: skip
    page.locator("#panel-heads").get_by_role("button", name="Table").click()
    shown = cells(page.locator("#panel-heads table"))[1:271]
    assert [r[5] for r in shown] == [three(e) for e in want["effect"]]
    layers = [r for r in rows(page, "heads") if r["site"] != name]
    for other in {"graft mlp"} if "graft" in site else {"attn_out", "mlp_out", "resid_post"}:
        assert [float(r["effect"]) for r in layers if r["site"] == other] == stats(data, other.replace("graft ", "graft:"), metric, direction)["effect"]  # fmt: skip


def test_colour_glyph_and_place_of_cells(show):
    """Zero that is not white, a sign by colour alone, a missing head drawn as zero, a transposed map."""
    data = bundle(4, 3)
    numbers = stats(data)
    numbers["effect"] = [0.0, 2.0, -2.0, None, 1.0, -1.0, *[0.0] * 6]
    numbers["significant"] = [False, True, True, None, *[False] * 8]
    other = stats(data, direction="break")
    other["effect"] = [0.0] * 12
    page = show(data)
    cell = page.locator("#panel-heads .cells rect")
    fill = cell.evaluate_all("c => c.map(r => r.getAttribute('fill'))")
    assert len(fill) == 11  # the missing one is no cell
    white, brown, blue = "rgb(247, 247, 247)", "rgb(179, 88, 6)", "rgb(33, 102, 172)"
    assert (fill[0], fill[1], fill[2]) == (white, brown, blue)
    assert fill[3] == "rgb(253, 184, 99)"  # half of the scale: ColorBrewer's middle orange
    x = cell.evaluate_all("c => c.map(r => [+r.getAttribute('x'), +r.getAttribute('y')])")
    assert x[0][0] == x[1][0] == x[2][0] < x[3][0]  # three heads of layer 0, then layer 1
    assert x[0][1] < x[1][1] < x[2][1]
    assert page.locator("#panel-heads .missing").get_attribute("d").count("M") == 1
    glyphs = page.locator("#panel-heads .glyph").evaluate_all(
        "g => g.map(p => p.getAttribute('d'))"
    )
    assert sorted(d.count("v") for d in glyphs) == [0, 1]  # one plus has an upright, one minus none
    assert "L0H1: +2.00 nats" in page.locator("#panel-heads .readout").inner_text()
    page.get_by_label("significant only").check()
    assert cell.count() == 2
    page.get_by_role("button", name="break").click()
    assert cell.count() == len([s for s in other["significant"] if s])


def test_bars_sum_heads_and_show_layers(show):
    """Sums over layers instead of heads; bars that start elsewhere than at zero."""
    data = full()
    page = show(data)
    sums = np.array(stats(data)["effect"]).reshape(30, 9).sum(1)
    labels = page.locator("#panel-heads svg text").all_text_contents()
    peaks = [t for t in labels if t.startswith("peak")]
    want = [
        sums,
        *(np.array(stats(data, s)["effect"]) for s in ("attn_out", "mlp_out", "resid_post")),
    ]
    assert peaks == [f"peak {three(w[np.abs(w).argmax()])}" for w in want]
    heights = page.locator("#panel-heads rect.pos, #panel-heads rect.neg").evaluate_all("r => r.map(x => [+x.getAttribute('height'), x.getAttribute('class')])")  # fmt: skip
    for strip, w in enumerate(want):
        drawn = heights[30 * strip : 30 * (strip + 1)]
        assert [c for _, c in drawn] == ["neg" if v < 0 else "pos" for v in w]
        ratio = np.array([h for h, _ in drawn])[np.abs(w) > 0.2 * np.abs(w).max()] / np.abs(w)[np.abs(w) > 0.2 * np.abs(w).max()]  # fmt: skip
        assert np.allclose(ratio, ratio[0], rtol=1e-6)


def test_ranked_intervals(show):
    """An order by signed size, an interval of another head, marks that are not where their numbers are."""
    data = full()
    page = show(data)
    want, order = stats(data), largest(data)
    options = page.locator("#panel-sure [role=option]")
    assert options.count() == 15
    seen = options.evaluate_all("o => o.map(g => ({text: [...g.querySelectorAll('text')].map(t => t.textContent), cx: +g.querySelector('circle').getAttribute('cx'), ends: ['x1', 'x2'].map(k => +g.querySelector('line').getAttribute(k)), sure: g.querySelector('.sure') !== null}))")  # fmt: skip
    for i, row in zip(order, seen, strict=False):
        e, low, high = (want[k][i] for k in ("effect", "low", "high"))
        assert [t.strip() for t in row["text"]] == [
            f"L{i // 9}H{i % 9}",
            three(e, True),
            f"{three(low)} to {three(high)}",
        ]
        assert row["sure"] == want["significant"][i]
    values = np.array([[want[k][i] for k in ("effect", "low", "high")] for i in order[:15]])
    drawn = np.array([[r["cx"], *r["ends"]] for r in seen])
    slope, start = np.polyfit(values.ravel(), drawn.ravel(), 1)
    assert np.allclose(slope * values + start, drawn, atol=1e-6)
    band = page.locator("#panel-sure .band").evaluate("b => [+b.getAttribute('x'), +b.getAttribute('width')]")  # fmt: skip
    assert np.allclose(band, [start - slope * 0.061, 2 * slope * 0.061])
    assert "±0.0610" in page.locator("#panel-sure .help").first.inner_text()


def test_top_k_against_random(show):
    """Random and top exchanged, an index off by one, frames on other heads than the k chosen."""
    data = full()
    page = show(data)
    curve = data["sets"][0]
    slider = page.get_by_role("slider")
    assert page.locator("#panel-heads .outlined").count() == 0
    for at, k in enumerate(curve["k"]):
        slider.fill(str(at + 1))
        top, random = curve["top"], curve["random"]
        text = page.locator("#panel-sure .readout").nth(1).inner_text().replace("\xa0", " ")
        assert text == f"Top {k}: {three(top['effect'][at], True)} nats ({three(top['low'][at])} to {three(top['high'][at])}), {three(100 * top['effect'][at] / 2.81)} % of 2.81; random {k}: {three(random['mean'][at], True)} ({three(random['low'][at])} to {three(random['high'][at])}); n = 24"  # fmt: skip
        assert page.locator("#panel-heads .outlined").count() == k
    assert hash_of(page)["k"] == "16"
    line = page.locator("#panel-sure svg").nth(1)
    drawn = line.locator("circle").evaluate_all("c => c.map(x => +x.getAttribute('cy'))")
    values = np.ravel(list(zip(random["mean"], top["effect"], strict=True)))
    slope, start = np.polyfit(values, drawn, 1)
    assert np.allclose(slope * values + start, drawn, atol=1e-6) and slope < 0
    out = [r for r in rows(page, "sure") if r["what"] == "top"]
    assert [float(r["effect"]) for r in out] == top["effect"]
    assert out[1]["heads"].split() == [f"L{a}H{b}" for a, b in curve["heads"][1]]


def test_head_card(show):
    """A pinned head's numbers in the selected head's column; before and after exchanged."""
    data = full()
    page = show(data, "#head=L8H0&pinned=L5H3.L7H1")
    table = cells(page.locator("#panel-head table"))
    assert [t.split("\n")[0].replace(" ×", "").replace("×", "").strip() for t in table[0][1:]] == ["L8H0", "L5H3", "L7H1"]  # fmt: skip
    by = {row[0]: row[1:] for row in table[1:]}
    order = largest(data)
    for column, i in enumerate((72, 48, 64)):
        for direction in ("restore", "break"):
            for site in ("head_out", "z", "graft:all"):
                s = stats(data, site, "log_prob", direction)
                want = (
                    f"{three(s['effect'][i], True)}\n{three(s['low'][i])} to {three(s['high'][i])}"
                )
                assert by[f"{site.replace('graft:', 'graft ')} {direction}"][column] == want
        columns = data["heads"]["columns"]
        assert by["attention change (JS), bit"][column] == three(columns["js"]["values"][i])
        pre, post, change = (columns[f"dla_{k}"]["values"][i] for k in ("pre", "post", "change"))
        assert by["direct logit attribution, nats"][column] == f"{three(pre)} → {three(post)} ({three(change, True)})"  # fmt: skip
        assert by["rank, head_out restore"][column] == f"{order.index(i) + 1} of 270"
        assert by["noise floor"][column] == "0.0610"
    out = rows(page, "head")
    assert {r["head"] for r in out} == {"L8H0", "L5H3", "L7H1"}
    found = [r for r in out if (r["head"], r["measure"], r["metric"], r["direction"]) == ("L7H1", "z", "logit_diff", "break")]  # fmt: skip
    assert float(found[0]["value"]) == stats(data, "z", "logit_diff", "break")["effect"][64]


def test_attention(show):
    """Queries and keys exchanged, an offset into another head, before shown as after."""
    data = bundle(4, 3)
    t = len(data["attention"]["tokens"][1])
    corner = np.zeros((12, t * (t + 1) // 2), np.uint8)
    flip = corner.copy()
    corner[7, t * (t + 1) // 2 - t] = 255  # head L2H1, last query, first key
    flip[7, -1] = 102  # last query, last key: 0.4
    data["attention"]["pre"][1], data["attention"]["post"][1] = (
        base64.b64encode(gzip.compress(a.tobytes())).decode() for a in (corner, flip)
    )
    page = show(data, "#head=L2H1&prompt=1")
    pixels = page.locator("#panel-attention image").evaluate_all("""all => Promise.all(all.map(async (e) => {
        const image = new Image();
        image.src = e.getAttribute('href');
        await image.decode();
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [image.width, image.height];
        const pen = canvas.getContext('2d', { willReadFrequently: true });
        pen.drawImage(image, 0, 0);
        const at = (q, k) => [...pen.getImageData(k * image.width / T + 2, q * image.width / T + 2, 1, 1).data].join();
        return [at(T - 1, 0), at(T - 1, T - 1), at(0, T - 1), at(1, 0)];
    }))""".replace("T", str(t)))  # fmt: skip
    brown, blue, white, none = "179,88,6,255", "33,102,172,255", "247,247,247,255", "0,0,0,0"
    assert pixels[0] == [brown, white, none, white]
    assert pixels[1][0] == white and pixels[1][1] not in (white, brown)
    assert pixels[2][0] == blue and pixels[2][1] == pixels[1][1]  # one scale for all three
    last = data["attention"]["tokens"][1][-1].strip()
    changes = page.locator("#panel-attention .changes li").all_inner_texts()
    assert changes[0] == f"␣{last} [{t - 1}] reads The [0]: 1.00 → 0 (−1.00)"
    assert changes[1] == f"␣{last} [{t - 1}] reads ␣{last} [{t - 1}]: 0 → 0.400 (+0.400)"
    strip = page.get_by_role("radio")
    assert strip.nth(0).inner_text().endswith("−") and strip.nth(t - 1).inner_text().endswith("+")
    out = rows(page, "attention")
    assert [(float(r["before"]), float(r["after"])) for r in out] == list(zip(corner[7] / 255, flip[7] / 255, strict=True))  # fmt: skip
    strip.nth(2).click()
    assert hash_of(page)["token"] == "2"
    page.keyboard.press("ArrowRight")
    assert strip.nth(3).get_attribute("aria-checked") == "true" and hash_of(page)["token"] == "3"


def test_prompts_table_and_sorting(show):
    """Flips exchanged, rows sorted as text, missing values in the middle."""
    data = full()
    data["prompts"][3]["logit_diff"] = [None, None]
    page = show(data)
    table = page.locator("#panel-prompts table")
    change = [p["log_prob"][1] - p["log_prob"][0] for p in data["prompts"]]
    order = sorted(range(24), key=lambda i: change[i])
    seen = cells(table)[1:]
    assert [int(r[0]) for r in seen] == order
    names = {(1, 1): "● kept", (1, 0): "× lost", (0, 1): "+ gained", (0, 0): "○ never"}
    for i, row in zip(order, seen, strict=True):
        p = data["prompts"][i]
        assert row == [str(i), p["text"], p["answer"].replace(" ", "␣"), three(p["log_prob"][0]), three(p["log_prob"][1]), three(change[i], True), names[tuple(p["correct"])], f"L{p['top_head'][0]}H{p['top_head'][1]}"]  # fmt: skip
    for _ in range(2):
        table.get_by_role("button", name="before").click()
    before = [p["log_prob"][0] for p in data["prompts"]]
    assert [int(r[0]) for r in cells(table)[1:]] == sorted(range(24), key=lambda i: -before[i])
    assert table.locator("[aria-sort]").get_attribute("aria-sort") == "descending"
    page.locator("#panel-heads").get_by_role("button", name="logit diff").click()
    table.get_by_role("button", name="change").click()
    assert cells(table)[-1][0] == "3" and cells(table)[-1][5] == "–"  # missing last
    assert page.locator("#panel-prompts .dot").count() == 23
    out = rows(page, "prompts")
    assert [float(r["log_prob_post"]) for r in out] == [p["log_prob"][1] for p in data["prompts"]]


def test_trust(show):
    """A digest, version, floor or note that the report leaves out."""
    data = full()
    page = show(data)
    text = page.locator("#panel-trust").inner_text()
    meta = data["meta"]
    for want in (*meta["digests"].values(), meta["command"], meta["created"], *meta["notes"], f"seed {meta['seed']}", meta["dtype"], meta["backend"], *(f"{k} {v}" for k, v in meta["versions"].items()), *(c["name"] for c in data["checks"]), *(c["detail"] for c in data["checks"])):  # fmt: skip
        assert want in text
    floor = {r[0]: r[1:] for r in cells(page.locator("#panel-trust table"))[1:]}
    for v in data["floor"]["values"]:
        column = ["log_prob", "logit_diff", "correct"].index(v["metric"])
        assert floor[f"{v['site'].replace(':', ' ')} {v['direction']}"][column] == three(v["value"])


def test_extreme_numbers(show):
    """Exponents of programmers, a hyphen for a minus, missing shown as zero."""
    data = bundle(4, 3)
    data["forgetting"][0] |= {"pre": -12345.6, "post": 1.234e7, "change": 0.00001234, "low": None, "high": None, "p": None}  # fmt: skip
    data["verdict"]["figures"] = [{"value": "-0.5", "label": "nats", "interval": "-1.5 to -0.1", "control": None}]  # fmt: skip
    page = show(data)
    row = cells(page.locator("#panel-verdict table"))[1]
    assert row[2:7] == ["−12,346", "1.23×10⁷", "+1.23×10⁻⁵", "no interval", "–"]
    assert page.locator(".figure").inner_text() == "−0.5\nnats\n−1.5 to −0.1"


# ------------------------------------------------------------------------------ selection, keyboard


def test_keyboard_moves_pins_and_stays_inside(show):
    """Keys that need a mouse first, run off the map, or leave focus behind."""
    page = show(full(), "#head=L0H0")
    heat(page).focus()
    assert page.locator("#panel-heads [role=grid] [tabindex='0']").count() == 1
    for keys, name in (("ArrowLeft ArrowUp", "L0H0"), ("ArrowRight ArrowRight ArrowDown", "L2H1"), ("End", "L29H1"), ("ArrowRight", "L29H1"), ("PageDown ArrowDown", "L29H8"), ("Home PageUp", "L0H0"), ("End", "L29H0")):  # fmt: skip
        for key in keys.split():
            page.keyboard.press(key)
        assert heat(page).get_attribute("aria-label").startswith(f"{name}: ")
        assert hash_of(page)["head"] == name
    page.keyboard.press("Enter")
    assert hash_of(page)["pinned"] == "L29H0"
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Enter")
    assert hash_of(page)["pinned"] == "L28H0.L27H0.L26H0"  # three at most, the oldest gives way
    page.keyboard.press("Enter")
    assert hash_of(page)["pinned"] == "L28H0.L27H0"
    assert page.evaluate("() => document.activeElement.getAttribute('role')") == "gridcell"


def test_ranked_list_and_prompts_by_keyboard(show):
    """Arrow keys that change the selection but lose the focus."""
    data = full()
    page = show(data)
    order = largest(data)
    page.locator("#panel-sure [role=option][tabindex='0']").focus()
    for i in order[1:4]:
        page.keyboard.press("ArrowDown")
        assert hash_of(page)["head"] == f"L{i // 9}H{i % 9}"
    assert page.evaluate("() => document.activeElement.getAttribute('aria-selected')") == "true"
    page.locator("#panel-prompts tbody tr[tabindex='0']").focus()
    page.keyboard.press("ArrowUp")
    chosen = page.locator("#panel-prompts tr[aria-selected=true] td").first.inner_text()
    assert hash_of(page)["prompt"] == chosen
    assert page.evaluate("() => document.activeElement.cells[0].innerText") == chosen


def test_every_view_follows_one_selection(show):
    """A panel that keeps a selection of its own."""
    data = full()
    page = show(data)
    page.locator("#panel-sure [role=option]").nth(2).click()
    i = largest(data)[2]
    name = f"L{i // 9}H{i % 9}"
    assert name in page.locator("#title-head").inner_text()
    assert name in page.locator("#title-attention").inner_text()
    assert heat(page).get_attribute("aria-label").startswith(name)
    page.locator("#panel-prompts tbody tr").filter(has_text="Japan").click()
    assert page.locator("#panel-attention select").input_value() == "5"
    assert "␣Japan" in page.locator("#panel-attention .strip").inner_text()
    page.locator("#panel-prompts .dot").nth(4).click(force=True)
    assert page.locator("#panel-attention select").input_value() == "4"
    page.get_by_role("button", name="68.3 %").click()  # a figure leads to its panel
    assert page.evaluate("() => document.activeElement.id") == "title-sure"
    page.locator("#panel-heads .hit").scroll_into_view_if_needed()
    box = page.locator("#panel-heads .hit").bounding_box()
    page.mouse.click(box["x"] + box["width"] * (3.5 / 30), box["y"] + box["height"] * (6.5 / 9))
    assert hash_of(page)["head"] == "L3H6"
    page.mouse.move(box["x"] + box["width"] * (7.5 / 30), box["y"] + box["height"] * (1.5 / 9))
    assert page.locator("#panel-heads .readout").inner_text().startswith("L7H1: ")  # a preview
    assert hash_of(page)["head"] == "L3H6"


def test_permalink_restores_everything(show):
    """A part of the selection that the address loses, or that a broken address breaks."""
    data = full()
    parts = "head=L4H2&prompt=3&metric=logit_diff&direction=break&site=z&pinned=L1H1.L2H2&k=8&token=2&significant=1"  # fmt: skip
    page = show(data, f"#{parts}")
    assert hash_of(page) == dict(p.split("=") for p in parts.split("&"))
    pressed = page.locator("#panel-heads [aria-pressed=true]").all_inner_texts()
    assert pressed == ["z", "logit diff", "break"]
    assert page.get_by_label("significant only").is_checked()
    assert page.get_by_role("slider").get_attribute("aria-valuetext") == "8 heads"
    assert page.get_by_role("radio").nth(2).get_attribute("aria-checked") == "true"
    page.evaluate("() => void (location.hash = '#head=L9H9&prompt=-1&metric=<b>&site=nowhere&pinned=L99H0.L1H1&k=x&token=999&significant=2')")  # fmt: skip
    page.wait_for_timeout(50)
    assert hash_of(page)["pinned"] == "L1H1"
    assert "<b>" not in page.url
    assert "head_out, restore, log prob" in page.locator("#panel-sure .help").first.inner_text()


def test_not_stored_attention_says_what_is(show):
    """Another head's pattern in place of one that is not in the file."""
    page = show(bundle(4, 3, stored=[(1, 2), (3, 0)]), "#head=L0H0")
    text = page.locator("#panel-attention").inner_text()
    assert "Attention of L0H0 is not in this file. Stored: L1H2 L3H0" in text
    page.locator("#panel-attention").get_by_role("button", name="L3H0").click()
    page.wait_for_selector("#panel-attention image")
    page.locator("#panel-prompts tbody tr").filter(has_text="Iraq").click()
    assert "Attention of prompt 21 is not in this file; 6 prompts are" in page.locator("#panel-attention").inner_text()  # fmt: skip


# -------------------------------------------------------------------------- exports, dark, narrow


@pytest.mark.parametrize("panel", ["heads", "head", "sure", "attention", "prompts"])
def test_pictures_stand_alone(show, panel):
    """A picture that needs the page's style sheet, holds its pointer targets, or is blank."""
    page = show(full())
    root = ET.fromstring(downloaded(page, panel, "SVG").read_text("utf-8"))
    text = ET.tostring(root, "unicode")
    assert "var(" not in text and "class=" not in text and "data-live" not in text
    svg = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{svg}title").text.endswith("?")
    assert len(root.findall(f"{svg}svg")) == {"sure": 2}.get(panel, 1)
    shown = page.locator(f"#panel-{panel} svg[data-figure] text").count()
    assert len(list(root.iter(f"{svg}text"))) == shown > 5
    width, height = int(root.get("width")), int(root.get("height"))
    png = downloaded(page, panel, "PNG").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(png[i : i + 4], "big") for i in (16, 20)] == [3 * width, 3 * height]
    assert len(png) > 10_000


def test_dark_and_print(show):
    """A dark page with light cells; a dark page on paper; controls in print."""
    data = bundle(4, 3)
    stats(data)["effect"][0] = 0.0
    page = show(data, color_scheme="dark")
    root = page.locator("html")
    zero = lambda: page.locator("#panel-heads .cells rect").first.get_attribute("fill")  # noqa: E731
    assert root.get_attribute("data-theme") == "dark" and zero() == "rgb(32, 38, 45)"
    page.get_by_role("button", name="Dark").click()
    assert root.get_attribute("data-theme") == "light" and zero() == "rgb(247, 247, 247)"
    page.get_by_role("button", name="Dark").click()
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert root.get_attribute("data-theme") == "light" and zero() == "rgb(247, 247, 247)"
    assert not page.get_by_role("navigation").is_visible()
    assert not page.locator("#panel-heads .controls").is_visible()
    assert page.locator("#panel-heads svg").is_visible()
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    assert root.get_attribute("data-theme") == "dark"


OVERLAPS = """() => [...document.querySelectorAll('svg[data-figure]')].flatMap((svg) => {
    const texts = [...svg.querySelectorAll('text')].map((t) => [t.textContent.trim(), t.getBoundingClientRect()]).filter(([t]) => t);
    return texts.flatMap(([a, p], i) => texts.slice(i + 1).filter(([, q]) =>
        Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4)
        .map(([b]) => `${a} | ${b}`));
})"""


@pytest.mark.parametrize("width", SIZES)
def test_nothing_overlaps_or_sticks_out(show, width):
    """Labels on labels, and pages that scroll sideways, at three widths and for large models."""
    for data, hash in ((full(), "#k=4"), (full(layers=48, heads=40), "#site=graft:all&head=L47H39"), (bundle(4, 3, forgetting=False), "#pinned=L1H1.L2H2.L3H0")):  # fmt: skip
        page = show(data, hash, width=width)
        assert page.evaluate(OVERLAPS) == []
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        outside = page.evaluate("""() => [...document.querySelectorAll('svg[data-figure] text')].filter((t) => {
            const [a, b] = [t.getBoundingClientRect(), t.closest('svg').getBoundingClientRect()];
            return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 2 || a.bottom > b.bottom + 2;
        }).map((t) => [t.textContent, t.closest('section').id])""")  # fmt: skip
        assert outside == []


@pytest.mark.parametrize(("layers", "heads", "raster"), [(48, 40, False), (51, 40, True)])
def test_large_models_stay_quick(show, layers, heads, raster):
    """Thousands of nodes that are drawn again at each key, or a focus stop for each of them."""
    page = show(full(layers=layers, heads=heads))
    assert page.locator("#panel-heads .cells image").count() == raster
    assert page.locator("#panel-heads .cells rect").count() == (0 if raster else layers * heads)
    assert page.locator("#panel-heads [role=grid] [tabindex]").count() == 1
    heat(page).focus()
    page.keyboard.press("Home")
    page.evaluate("() => (window.first = document.querySelector('#panel-heads .cells').firstElementChild)")  # fmt: skip
    start = time.perf_counter()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert hash_of(page)["head"].startswith("L20H")
    assert (time.perf_counter() - start) / 20 < 0.25  # a slow machine; 20 to 40 ms here
    assert page.evaluate("() => window.first === document.querySelector('#panel-heads .cells').firstElementChild")  # fmt: skip


# --------------------------------------------------------------------------------------- states


def test_failed_check_turns_the_verdict_into_a_warning(show):
    """A report that looks trustworthy while a self-check failed."""
    data = bundle(4, 3)
    data["checks"][1] |= {"pass": False, "detail": "largest difference 0.3"}
    page = show(data)
    alert = page.get_by_role("alert").inner_text()
    assert "Do not trust" in alert and data["checks"][1]["name"] in alert and "0.3" in alert
    assert page.locator(".verdict").get_attribute("data-state") == "failed"
    assert "FAILED: largest difference 0.3" in page.locator("#panel-trust").inner_text()
    assert show(bundle(4, 3)).get_by_role("alert").count() == 0


def test_no_forgetting_is_a_normal_state(show):
    """A share of nothing; an alarm where all is well."""
    page = show(full(forgetting=False), "#k=4")
    assert page.locator(".verdict").get_attribute("data-state") == "none"
    assert page.get_by_role("alert").count() == 0
    assert "No forgetting to explain" in page.locator(".sentence").inner_text()
    text = page.locator("#panel-heads .readout").inner_text() + page.locator("#panel-sure").inner_text()  # fmt: skip
    assert "of the forgetting (" not in text and "%" not in text.replace("95 %", "")
    assert page.locator("#panel-sure .reference").count() == 0
    # Noise far below the floor is drawn pale, not stretched to full colour.
    fills = page.locator("#panel-heads .cells rect").evaluate_all(
        "c => c.map(r => r.getAttribute('fill'))"
    )
    assert all(min(map(int, re.findall(r"\d+", f))) > 240 for f in fills)


def test_empty_panels_say_how_to_fill_them(show):
    """A blank space or an error where a measure was not part of the run."""
    data = bundle(4, 3)
    data |= {"patching": {}, "grafting": {}, "sets": [], "attention": None, "prompts": [], "checks": [], "heads": {"columns": {}}, "floor": {"source": "none", "values": []}}  # fmt: skip
    data["empty"] = data["empty"] | {"attention": "Run `mechforget compare --measures attention_change`."}  # fmt: skip
    page = show(data)
    for panel in ("heads", "head", "sure", "attention", "prompts"):
        box = page.locator(f"#panel-{panel} .empty")
        assert box.count() == 1 and len(box.inner_text()) > 20
        assert page.locator(f"#panel-{panel} .tools").count() == 0
    assert page.locator("#panel-attention .empty code").inner_text() == "mechforget compare --measures attention_change"  # fmt: skip
    missing = page.locator("#panel-missing").inner_text()
    for text in full()["empty"].values():
        assert text.replace("`", "") in missing
    assert show(bundle(4, 3) | {"empty": {}}).locator("#panel-missing").count() == 0


def test_live_buttons_need_a_model(show):
    """A button that does nothing when pressed, and does not say why."""
    page = show(bundle(4, 3))
    button = page.get_by_role("button", name="Patch now")
    assert button.is_disabled()
    reason = page.locator(f"#{button.get_attribute('aria-describedby')}").inner_text()
    assert re.search("needs the model: mechforget app RUN", reason)


def test_maps_without_the_chosen_metric_give_way(show):
    """Numbers of one metric under another's name, when a matrix was grafted for one metric only."""
    data = full()
    page = show(data, "#site=graft:q&metric=correct")
    assert page.get_by_role("button", name="correct").is_disabled()
    i = max((i for i, e in enumerate(stats(data, "graft:q")["effect"]) if e is not None), key=lambda i: abs(stats(data, "graft:q")["effect"][i]))  # fmt: skip
    first = page.locator("#panel-sure [role=option] text").first.text_content().strip()
    assert first == f"L{i // 9}H{i % 9}"
    page.get_by_role("button", name="all", exact=True).click()
    assert page.locator("#panel-heads [aria-pressed=true]").all_inner_texts() == ["all", "correct", "restore"]  # fmt: skip
