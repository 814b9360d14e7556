"""Every number of every panel against the bundle."""

import base64
import gzip

import numpy as np
import pytest

from tests.views.reading import cells, full, hash_of, largest, one_number, rows, stats, three
from tests.views.synthetic import bundle


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
    attn = stats(data, "attn_out")
    for key in ("effect", "low", "high"):
        attn[key] = [-abs(v) - 3 for v in attn[key]]  # a strip without any positive number
    page = show(data)
    sums = np.array(stats(data)["effect"]).reshape(30, 9).sum(1)
    labels = page.locator("#panel-heads svg text").all_text_contents()
    peaks = [t for t in labels if t.startswith("peak")]
    want = [
        sums,
        *(np.array(stats(data, s)["effect"]) for s in ("attn_out", "mlp_out", "resid_post")),
    ]
    assert peaks == [f"peak {three(w[np.abs(w).argmax()])}" for w in want]
    bars = page.locator("#panel-heads rect.pos, #panel-heads rect.neg").evaluate_all(
        "r => r.map(x => [x.getAttribute('class'), +x.getAttribute('y'), +x.getAttribute('height')])"
    )
    zeros = page.locator("#panel-heads line.zero").evaluate_all(
        "z => z.map(x => +x.getAttribute('y1'))"
    )
    for strip, (w, zero) in enumerate(zip(want, zeros, strict=True)):
        kinds, y, height = zip(*bars[30 * strip : 30 * (strip + 1)], strict=True)
        assert kinds == tuple("neg" if v < 0 else "pos" for v in w)
        large = np.abs(w) > 0.2 * np.abs(w).max()
        scale = np.array(height)[large] / np.abs(w)[large]
        assert np.allclose(scale, scale[0], rtol=1e-6)
        base = np.where(w < 0, y, np.add(y, height))
        assert np.allclose(base[large], zero)
    assert np.all(np.diff(zeros) > 0) and max(np.diff(zeros)) < 68  # each in its own strip


def test_ranked_intervals(show):
    """An order by signed size, an interval of another head, marks that are not where their numbers are."""
    data = full()
    page = show(data)
    want, order = stats(data), largest(data)
    options = page.locator("#panel-sure [role=option]")
    assert options.count() == 15
    seen = options.evaluate_all("o => o.map(g => ({text: [...g.querySelectorAll('text')].map(t => t.textContent), cx: +g.querySelector('circle').getAttribute('cx'), ends: ['x1', 'x2'].map(k => +g.querySelector('line').getAttribute(k)), sure: g.querySelector('.sure') !== null}))")  # fmt: skip
    values = np.array([[want[k][i] for k in ("effect", "low", "high")] for i in order[:15]])
    decimals = 4 - int(np.ceil(np.log10(abs(values).max())))  # of all, so that a column is one
    for i, row, shown in zip(order, seen, values, strict=False):
        e, low, high = (f"{x:.{decimals}f}".replace("-", "−") for x in shown)
        assert [t.strip() for t in row["text"]] == [
            f"L{i // 9}H{i % 9}",
            ("+" if shown[0] > 0 else "") + e,
            f"{low} to {high}",
        ]
        assert row["sure"] == want["significant"][i]
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
    slider = page.locator("#panel-sure").get_by_role("slider")
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
    for _ in range(2):  # missing last, whichever way it runs
        assert cells(table)[-1][0] == "3" and cells(table)[-1][5] == "–"
        table.get_by_role("button", name="change").click()
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
