"""Failed checks, no forgetting, empty panels, what a run did not measure."""

import re

from mechforget.views.bundle import EMPTY, MECHANISMS
from tests.views.reading import full, stats
from tests.views.synthetic import bundle


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
    data |= dict.fromkeys(MECHANISMS) | {"patching": {}, "estimated": {}, "limits": [], "grafting": {}, "sets": [], "attention": None, "prompts": [], "checks": [], "heads": {"columns": {}}, "floor": {"source": "none", "values": []}}  # fmt: skip
    data["empty"] = EMPTY | {"attention": "Run `mechforget compare --measures attention_change`."}  # fmt: skip
    page = show(data)
    panels = ("heads", "head", "sure", "attention", "prompts", *MECHANISMS)
    for panel in panels:
        box = page.locator(f"#panel-{panel} .empty")
        assert box.count() == 1 and len(box.inner_text()) > 20
        assert page.locator(f"#panel-{panel} .tools").count() == 0
    assert page.locator("#panel-attention .empty code").inner_text() == "mechforget compare --measures attention_change"  # fmt: skip
    for panel, text in EMPTY.items():
        place = "missing" if panel == "circuit" else panel
        assert text.replace("`", "") in page.locator(f"#panel-{place}").inner_text()
    order = page.locator("section.panel").evaluate_all("s => s.map(x => x.id.slice(6))")
    assert order[6:-3] == list(MECHANISMS)
    data["claims"] = full()["claims"]  # what was measured comes before what wasn't
    order = show(data).locator("section.panel").evaluate_all("s => s.map(x => x.id.slice(6))")
    assert order[6] == "claims" and set(order[6:-3]) == set(MECHANISMS)
    assert show(bundle(4, 3) | {"empty": {}}).locator("#panel-missing").count() == 0


def test_live_buttons_need_a_model(show):
    """A button that does nothing when pressed, and does not say why."""
    page = show(bundle(4, 3))
    button = page.get_by_role("button", name="Patch now")
    assert button.is_disabled()
    reason = page.locator(f"#{button.get_attribute('aria-describedby')}").inner_text()
    assert re.search("A report cannot run the model", reason)


def test_maps_without_the_chosen_metric_give_way(show):
    """Numbers of one metric under another's name, when a matrix was grafted for one metric only."""
    data = full()
    page = show(data, "#site=graft:q&metric=correct")
    assert page.get_by_role("button", name="correct", exact=True).is_disabled()
    i = max((i for i, e in enumerate(stats(data, "graft:q")["effect"]) if e is not None), key=lambda i: abs(stats(data, "graft:q")["effect"][i]))  # fmt: skip
    first = page.locator("#panel-sure [role=option] text").first.text_content().strip()
    assert first == f"L{i // 9}H{i % 9}"
    page.get_by_role("button", name="all", exact=True).click()
    assert page.locator("#panel-heads [aria-pressed=true]").all_inner_texts() == ["all", "correct", "restore"]  # fmt: skip
