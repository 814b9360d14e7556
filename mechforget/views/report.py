"""The report: one offline HTML file that shows a bundle and cannot reach any other address."""

import base64
import gzip
import hashlib
import html
import json
import os
import tempfile
from pathlib import Path
from typing import Any

STATIC = Path(__file__).parent / "static"  # built from web/ by `npm run build`, committed
LARGE = 1_000_000  # characters of JSON above which gzip + base64 is smaller and still quick to open

# Nothing but the script of this very hash runs, and no request leaves the page. Attributes that
# Preact sets need inline style; exported pictures pass through data: and blob: addresses.
POLICY = (
    "default-src 'none'; script-src 'sha256-{hash}'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<div id="app"></div>
<noscript><h1>{title}</h1><p>{sentence}</p><p>The figures need JavaScript.</p></noscript>
<script type="{kind}" id="bundle">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def write(bundle: dict[str, Any], path: Path) -> None:
    """Writes one self-contained page to `path`; the old page is replaced completely or not at all.

    bundle: JSON values only, with None for missing numbers. Tokens may hold any character.
    Raises: ValueError: a NaN or an infinity. TypeError: a value that JSON does not have.
    """
    page = render(bundle)
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(page)
        draft.chmod(0o644)  # mkstemp keeps a file private; a report is made to be shared
        draft.replace(path)
    except BaseException:
        draft.unlink()
        raise


def render(bundle: dict[str, Any]) -> bytes:
    """The page as bytes; equal bundles give equal bytes."""
    script = (STATIC / "report.js").read_text("utf-8")
    if "</script" in script.lower() or "<!--" in script:
        raise AssertionError("report.js would end its own element: build it again")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    kind, data = _inline(json.dumps(bundle, allow_nan=False, separators=(",", ":")))
    page = PAGE.format(
        policy=POLICY.format(hash=digest),
        title=_text(bundle["meta"]["title"]),
        style=(STATIC / "report.css").read_text("utf-8"),
        sentence=_text(bundle["verdict"]["sentence"]),
        kind=kind,
        data=data,
        script=script,
    )
    return page.encode()


def _text(text: str) -> str:
    """As character references, because UTF-8 has no place for half a surrogate pair."""
    return html.escape(text).encode("ascii", "xmlcharrefreplace").decode()


def _inline(text: str) -> tuple[str, str]:
    """Type and text of the data element; `text` is ASCII, so U+2028 is an escape already."""
    if len(text) > LARGE:
        return "application/gzip", base64.b64encode(
            gzip.compress(text.encode(), 6, mtime=0)
        ).decode()
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return "application/json", text
