"""The report as a file: what is in it, that nothing gets out of it or runs in it, who can read it."""

import csv
import hashlib
import json
import re
import subprocess
from base64 import b64encode
from pathlib import Path

import pytest

from mechforget.views import report
from tests.views.synthetic import bundle

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<!--<script>",
    '<img/src="x"onerror=alert(1)>',
    "nul\0nul",
    "lone \ud800 high",
    "lone \udc00 low",
    "right \u202e left",
    "zero\u200bwidth",
    "line\u2028break",
    "&lt;b&gt; 'q\" `tick`",
    '=1+1,"quoted"\nnext',
    "${1+1} {{x}}",
)


def hostile() -> dict:
    """Hostile text in every place where a task, a token or a path can put it."""
    prompts = [
        {"text": t, "answer": t, "wrong": t, "cluster": i, "log_prob": [-1.0, -2.0 - i],
         "logit_diff": [1.0, 0.5], "correct": [1, 0], "tokens": [t, *HOSTILE]}
        for i, t in enumerate(HOSTILE)
    ]  # fmt: skip
    data = bundle(layers=4, heads=3, prompts=prompts)
    text = " ".join(HOSTILE)
    for key in ("title", "pre", "post", "task", "new_task", "command"):
        data["meta"][key] = text
    data["meta"]["notes"] = list(HOSTILE)
    data["verdict"] |= {"sentence": text, "lines": [f"line {text}"], "warnings": list(HOSTILE)}
    data["verdict"]["figures"][0] |= {"label": text, "control": text}
    data["checks"] = [{"name": t, "pass": False, "detail": t} for t in HOSTILE]
    data["empty"] = dict.fromkeys(data["empty"], text)
    data["floor"]["source"] = text
    data["limits"] = [{"name": t, "detail": t} for t in HOSTILE]
    data["drift"]["caveat"] = data["landscape"]["curvature"]["note"] = text
    data["readout"]["caveat"], data["readout"]["verdict"] = text, [text] * 5
    data["claims"] = [
        c | {k: text for k in ("text", "paper", "unit", "why", "how")} for c in data["claims"]
    ]
    data["agreement"]["means"] = dict.fromkeys(data["agreement"]["means"], text)
    return data


def test_write_replaces_whole_or_not_at_all(tmp_path):
    """A failing write that leaves half a file, a draft beside it, or the old report damaged."""
    path = tmp_path / "report.html"
    report.write(bundle(3, 2), path)
    before = path.read_bytes()
    bad = bundle(3, 2)
    bad["forgetting"][0]["pre"] = float("nan")  # browsers' JSON does not know NaN
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write(bad, path)
    with pytest.raises(TypeError):
        report.write(bundle(3, 2) | {"empty": {"circuit": object()}}, path)
    assert path.read_bytes() == before
    taken = tmp_path / "folder"
    taken.mkdir()
    (taken / "full").touch()
    with pytest.raises(OSError, match="folder"):  # fails after the draft was written
        report.write(bundle(3, 2), taken)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "report.html"]


def test_equal_bundles_give_equal_bytes(monkeypatch):
    """A clock or a random number in the page, also in the header of the gzip."""
    assert report.render(bundle(3, 2)) == report.render(bundle(3, 2))
    monkeypatch.setattr(report, "LARGE", 0)
    assert report.render(bundle(3, 2)) == report.render(bundle(3, 2))


def test_policy_lets_only_this_script_run(monkeypatch, tmp_path):
    """A hash of other text than the one between the tags; a script that ends its own element."""
    page = report.render(hostile()).decode()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = b64encode(hashlib.sha256(scripts[-1].encode()).digest()).decode()
    assert len(scripts) == 1
    assert f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:;" in page  # fmt: skip
    for bad in ("</script", "</SCRIPT>", "<!--"):
        (tmp_path / "report.js").write_text(f"x='{bad}'")
        monkeypatch.setattr(report, "STATIC", tmp_path)
        with pytest.raises(AssertionError, match="build it again"):
            report.render(bundle(3, 2))


def test_page_can_reach_nothing(show):
    """A policy that is missing, misspelt, or stands after what it should bind."""
    page = show(bundle(4, 3))
    found = page.evaluate("""async () => {
        const seen = [];
        document.addEventListener('securitypolicyviolation', (e) => seen.push(e.effectiveDirective));
        const script = document.createElement('script');
        script.textContent = 'window.ran = 1';
        document.body.append(script);
        const fetched = await fetch('https://example.org/').then(() => 'fetched', () => 'refused');
        await new Promise((done) => setTimeout(done, 50));
        return [fetched, window.ran ?? null, seen.sort()];
    }""")
    assert all("Content Security Policy" in e for e in show.errors)
    show.errors.clear()
    assert found == ["refused", None, ["connect-src", "script-src-elem"]]


@pytest.mark.parametrize("large", [False, True], ids=["json", "gzip"])
def test_hostile_text_stays_text(show, monkeypatch, large):
    """Text that becomes an element, runs, vanishes, turns the line around, or cuts the data short."""
    if large:
        monkeypatch.setattr(report, "LARGE", 0)
    data = hostile()
    page = show(data)
    page.on("dialog", lambda d: pytest.fail(f"a token opened a dialog: {d.message}"))
    assert page.locator("script#bundle").get_attribute("type") == ("application/gzip" if large else "application/json")  # fmt: skip
    for button in page.get_by_role("button", name="Table").all():
        button.click()
    text = page.locator("#app").inner_text()
    for shown in ("<script>window.hacked = 1</script>", "<!--<script>", '<img/src="x"onerror=alert(1)>', "nul␀nul", "lone \ufffd high", "right ⟨U+202E⟩ left", "zero⟨U+200B⟩width", "line⟨U+2028⟩break", "&lt;b&gt;", "⏎next", "${1+1} {{x}}"):  # fmt: skip
        assert shown in text
    assert not re.search("[\0\u202e\u200b\u2028\ud800-\udfff]", text)
    assert page.evaluate("() => [window.hacked ?? null, document.scripts.length, document.querySelectorAll('img').length]") == [None, 2, 0]  # fmt: skip
    assert page.title().startswith("</script><script>")
    with page.expect_download() as event:
        page.locator("#panel-prompts").get_by_role("button", name="CSV").click()
    with Path(event.value.path()).open(newline="", encoding="utf-8") as file:
        read = [row["text"] for row in csv.DictReader(file)]
    assert read == [re.sub("[\ud800-\udfff]", "\ufffd", t) for t in HOSTILE]
    data_read = page.evaluate("() => new Promise(r => { const make = URL.createObjectURL; URL.createObjectURL = (b) => (b.text().then(r), make(b)); [...document.querySelectorAll('nav button')].find(b => b.textContent.includes('JSON')).click(); })")  # fmt: skip
    assert json.loads(data_read) == data  # every character, lone surrogates too


@pytest.mark.parametrize(("scheme", "width"), [("light", 1360), ("dark", 400)])
def test_axe_finds_nothing_serious(show, built, scheme, width):
    """Contrast, names, roles and focus that shut somebody out, in every state a panel has."""
    axe = (built / "node_modules/axe-core/axe.min.js").read_text()
    failed = bundle(4, 3)
    failed["checks"][0]["pass"] = False
    empty = bundle(4, 3) | {"patching": {}, "grafting": {}, "sets": [], "attention": None, "drift": None, "claims": None}  # fmt: skip
    states = [
        (show(bundle(6, 4, experts=4), "#pinned=L1H1.L2H2&k=4", color_scheme=scheme, width=width), False),
        (show(bundle(4, 3, stored=[(0, 0)]), "#significant=1", color_scheme=scheme, width=width), True),
        (show(failed, "#site=graft:q", color_scheme=scheme, width=width), False),
        (show(empty, color_scheme=scheme, width=width), False),
    ]  # fmt: skip
    for page, tables in states:
        for button in page.get_by_role("button", name="Table", exact=True).all() if tables else []:
            button.click()
        page.evaluate(axe)
        found = page.evaluate("() => axe.run().then((r) => r.violations.map((v) => [v.impact, v.id, v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160))]))")  # fmt: skip
        assert [v for v in found if v[0] in ("serious", "critical")] == []


def test_build_is_the_committed_one(built):
    """A change in web/ that nobody built, or a build that depends on the day or the machine."""
    for name in ("report.js", "report.css"):
        assert (built.parent / "static" / name).read_bytes() == (
            report.STATIC / name
        ).read_bytes(), "run `npm run build` in mechforget/views/web"


def test_types(built):
    """A field that the bundle does not have; arguments in the wrong order."""
    done = subprocess.run(["npm", "run", "check"], cwd=built, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
