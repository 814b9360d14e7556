"""One linked selection: pointer, keyboard, permalink."""

from tests.views.reading import full, hash_of, heat, largest
from tests.views.synthetic import bundle


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
    assert (
        page.locator("#panel-sure").get_by_role("slider").get_attribute("aria-valuetext")
        == "8 heads"
    )
    assert page.get_by_role("radio").nth(2).get_attribute("aria-checked") == "true"
    page.evaluate("() => void (location.hash = '#head=L9H9&prompt=-1&metric=<b>&site=nowhere&pinned=L99H0.L1H1&k=x&token=999&significant=2')")  # fmt: skip
    page.wait_for_url(lambda url: "L99H0" not in url and "L2H2" not in url)
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
