"""How the tests read a page and a bundle."""

import csv
import functools
import io
import json
from pathlib import Path
from typing import Any

from tests.views.synthetic import bundle


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
