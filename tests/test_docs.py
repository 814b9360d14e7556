"""The documents: links that lead somewhere, and a glossary that has the words of the verdict."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "remote/README.md", *sorted((ROOT / "docs").glob("*.md"))]
GLOSSARY = (ROOT / "docs/glossary.md").read_text()
VERDICT = (ROOT / "mechforget/study/verdict.py").read_text()
# Term -> how the verdict writes it, where that differs.
OF_THE_VERDICT = {
    **dict.fromkeys(("log_prob", "logit_diff", "correct", "head_out", "expressed", "written")),
    **dict.fromkeys(("cross-fitted", "floor", "interval", "patching", "significant", "sign flips")),
    "break": "breaking",
    "cluster": "clusters",
    "forgetting": "forgetting",
    "graft": "grafting",
    "nat": "nats",
    "q": "FDR",
    "restore": "restoring",
    "self-check": "self-check failed",
    "set": "heads together restore",
}
OTHERS = ("z", "ledger", "twin", "donor", "screen", "share", "origins", "readout", "drift", "site")


def entries() -> set[str]:
    """The terms in bold at the start of an entry; several may share one."""
    heads = re.findall(r"^- \*\*(.+?)\*\*", GLOSSARY, re.MULTILINE)
    return {term for head in heads for term in head.split(", ")}


@pytest.mark.parametrize("term", [*OF_THE_VERDICT, *OTHERS])
def test_the_glossary_explains_the_words_of_the_verdict(term):
    """Catches an entry that was lost, and a word of the verdict that was renamed in one place."""
    assert term in entries()
    if term in OF_THE_VERDICT:
        assert (OF_THE_VERDICT[term] or term) in VERDICT


def test_a_term_has_one_entry():
    """Catches one word with two meanings."""
    heads = re.findall(r"^- \*\*(.+?)\*\*", GLOSSARY, re.MULTILINE)
    terms = [term for head in heads for term in head.split(", ")]
    assert len(terms) == len(set(terms))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document):
    """Catches a link to a file or a heading that was renamed."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, target
