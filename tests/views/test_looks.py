"""Exports, dark mode, print, widths, large models."""

import xml.etree.ElementTree as ET

import pytest

from tests.views.reading import downloaded, full, hash_of, heat, stats
from tests.views.synthetic import bundle

SIZES = [1360, 1000, 400]


MARKS = ("drift", "interference", "landscape", "ledger", "readout", "agreement", "routing")
MANY = {"sure": 2, "drift": 4, "interference": 2, "ledger": 2, "readout": 2, "routing": 3}


@pytest.mark.parametrize("panel", ["heads", "head", "sure", "attention", "prompts", *MARKS])
def test_pictures_stand_alone(show, panel):
    """A picture that needs the page's style sheet, holds its pointer targets, or is blank."""
    page = show(full(experts=8))
    root = ET.fromstring(downloaded(page, panel, "SVG").read_text("utf-8"))
    text = ET.tostring(root, "unicode")
    assert "var(" not in text and "class=" not in text and "data-live" not in text
    svg = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{svg}title").text.endswith("?")
    assert len(root.findall(f"{svg}svg")) == MANY.get(panel, 1)
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
    tiny = full()  # beside large ones: 1e-5 has many characters
    for key in ("effect", "low", "high"):
        at = stats(tiny, "z", direction="break")
        at[key] = [v / 12345 for v in at[key]]
    for data, hash in ((full(experts=8), "#k=4"), (tiny, ""), (full(layers=48, heads=40, metrics=("log_prob",)), "#site=graft:all&head=L47H39"), (bundle(4, 3, forgetting=False), "#pinned=L1H1.L2H2.L3H0")):  # fmt: skip
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
    page = show(full(layers=layers, heads=heads, metrics=("log_prob",)))
    assert page.locator("#panel-heads .cells image").count() == raster
    assert page.locator("#panel-heads .cells rect").count() == (0 if raster else layers * heads)
    assert page.locator("#panel-heads [role=grid] [tabindex]").count() == 1
    heat(page).focus()
    page.keyboard.press("Home")
    page.evaluate("() => (window.first = document.querySelector('#panel-heads .cells').firstElementChild)")  # fmt: skip
    page.evaluate("() => { window.drawn = 0; new MutationObserver(found => (window.drawn += found.length)).observe(document.querySelector('#panel-heads .cells'), {subtree: true, childList: true, attributes: true}); }")  # fmt: skip
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert hash_of(page)["head"].startswith("L20H")
    assert page.evaluate("window.drawn") < layers * heads  # of 20 drawings, not even one's worth
    assert page.evaluate("() => window.first === document.querySelector('#panel-heads .cells').firstElementChild")  # fmt: skip
