"""A real Chromium that shows a report from disk, with no network, and a fresh build of the front end."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mechforget.views import report

WEB = Path(report.__file__).parent / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path:
        pytest.skip(
            "no Chromium on this machine: the views were not looked at (apt install chromium)"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def show(chromium, tmp_path) -> Iterator[Callable[..., Any]]:
    """show(bundle, hash, **context) -> page. At the end: no request left the file, no error was logged."""
    contexts, requests, errors = [], [], []

    def show(bundle: dict[str, Any], hash: str = "", *, width: int = 1360, **context: Any) -> Any:
        file = tmp_path / f"report{len(contexts)}.html"
        report.write(bundle, file)
        contexts.append(
            chromium.new_context(
                viewport={"width": width, "height": 900}, reduced_motion="reduce", **context
            )
        )
        contexts[-1].set_default_timeout(300_000)  # ms; its own half minute is short under load
        page = contexts[-1].new_page()
        page.on("request", lambda r: requests.append(r.url))
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("console", lambda m: m.type in ("error", "warning") and errors.append(m.text))
        page.goto(f"{file.as_uri()}{hash}")
        page.wait_for_selector("#panel-trust")
        page.wait_for_selector("#panel-attention image, #panel-attention .empty")
        return page

    show.errors = errors  # for the one test that wants some
    yield show
    for context in contexts:
        context.close()
    here = tmp_path.as_uri()
    assert [u for u in requests if not u.startswith((here, "data:", "blob:"))] == []
    assert errors == []


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """`npm ci && npm run build` in a copy: its web/ with node_modules, its static/ beside it. The
    glossary lies where the sources look for it."""
    if not shutil.which("npm"):
        pytest.skip("no node on this machine: the front end was not rebuilt")
    root = tmp_path_factory.mktemp("checkout")
    web = root / "mechforget" / "views" / "web"
    (root / "docs").mkdir()
    shutil.copy(WEB.parents[2] / "docs" / "glossary.md", root / "docs")
    shutil.copytree(WEB, web, ignore=shutil.ignore_patterns("node_modules"))
    for command in (
        ["npm", "ci", "--no-audit", "--no-fund", "--prefer-offline"],
        ["npm", "run", "build"],
    ):
        done = subprocess.run(command, cwd=web, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return web
