"""Built-in relations: facts that anyone can check, and nothing blank, double or withdrawn."""

import pytest

from mechforget import tasks
from mechforget.errors import TaskError

FACTS = {
    "capital": {"France": "Paris", "the Netherlands": "Amsterdam", "Japan": "Tokyo"},
    "currency": {
        "Japan": "yen",
        "France": "euro",
        "Switzerland": "franc",  # with CHE and CHW, which nobody pays with
        "the United Kingdom": "pound",  # Pound Sterling
        "Israel": "shekel",
        "Senegal": "franc",  # CFA Franc BCEAO
    },
    "demonym": {"Italy": "Italian", "Peru": "Peruvian"},
    "language": {"Brazil": "Portuguese", "Greece": "Greek", "Nepal": "Nepali"},
    "region": {"Kenya": "Africa", "Canada": "Americas"},
    "tld": {"Germany": ".de", "Kazakhstan": ".kz"},  # it has one in Cyrillic too
    "french": {"Germany": "Allemagne", "the United States": "États-Unis"},
    "german": {"France": "Frankreich", "Austria": "Österreich"},
    "spanish": {"Germany": "Alemania", "Spain": "España"},
    "past_tense": {"go": "went", "walk": "walked", "stop": "stopped"},
    "plural": {"child": "children", "dog": "dogs", "city": "cities"},
}
ABSENT = {
    "capital": ["Singapore", "Kazakhstan"],  # copies its subject; renamed since
    "currency": ["Croatia", "Haiti"],  # withdrawn; two
    "demonym": ["Bosnia and Herzegovina"],  # two
    "language": ["Canada", "Serbia", "Malaysia"],  # two; no such code; none
    "french": ["Russia", "Canada", "the Philippines"],  # of another English name; copies
    "spanish": ["Tunisia"],
}
TRANSLATED = ("french", "german", "spanish")


def test_the_names_are_the_promised_ones():
    assert set(tasks.BUILTIN) == set(FACTS)


@pytest.mark.parametrize("name", sorted(FACTS))
def test_facts_and_form(name):
    task = tasks.load(f"builtin:{name}")
    rows = task.rows
    answers = dict(zip(rows["subject"], rows["answer"], strict=True))
    for subject, answer in FACTS[name].items():
        assert answers[subject] == answer
    assert not set(ABSENT.get(name, ())) & set(answers)
    assert rows["subject"].is_unique and rows["template"].nunique() == 1  # subjects are clusters
    assert len(rows) == task.clusters.max() + 1 >= 85
    assert rows["answer"].nunique() >= 5
    for row in rows.itertuples():
        assert row.prompt == row.template.replace("{}", row.subject)
        assert row.answer == row.answer.strip() != ""
        assert not set(row.answer) & set(",/()[]0123456789\n")
        assert row.answer != row.subject.removeprefix("the ")
    assert (task.name, task.source) == (name, f"builtin:{name}")
    (note,) = task.notes
    assert note.startswith(f"{len(rows)} subjects from ") and "left out" in note


@pytest.mark.parametrize("name", sorted(FACTS))
def test_every_template_as_rows_or_one_of_ones_own(name):
    one, every = (tasks.load(f"builtin:{name}", template=t) for t in (None, "all"))
    assert len(every) == 2 * len(one)
    assert every.rows["template"].nunique() == 2
    assert every.rows["prompt"].tolist()[: len(one)] == one.rows["prompt"].tolist()
    assert every.clusters.tolist() == [*range(len(one))] * 2
    own = tasks.load(f"builtin:{name}", template="{}?")
    assert own.rows["prompt"][0] == one.rows["subject"][0] + "?"


def test_countries_come_largest_first_and_words_in_their_own_order():
    # A set or a dictionary by code would shuffle them, and the default wrong answers with them.
    assert tasks.load("builtin:capital").rows["subject"].tolist()[:3] == [
        "China",
        "India",
        "the United States",
    ]
    assert tasks.load("builtin:plural").rows["subject"].tolist()[:2] == ["year", "man"]


def test_countries_carry_their_article_and_one_name():
    subjects = tasks.load("builtin:demonym").rows["subject"].tolist()
    assert "the Gambia" in subjects and "Gambia" not in subjects
    assert "Myanmar" in subjects and "Burma" not in subjects  # two entries, one country
    assert "Scotland" not in subjects and "Guam" not in subjects


def test_translations_are_not_mostly_copies_of_each_other():
    # A wrong locale falls back to English without a word.
    answers = [set(tasks.load(f"builtin:{name}").rows["answer"]) for name in TRANSLATED]
    for i, one in enumerate(answers):
        for other in answers[i + 1 :]:
            assert len(one & other) < 0.2 * len(one)


@pytest.mark.parametrize("name", ["capitals", "", "Capital", "hub"])
def test_an_unknown_name_lists_the_names(name):
    with pytest.raises(TaskError) as caught:
        tasks.load(f"builtin:{name}")
    assert str(caught.value) == (
        f"builtin:{name}: no such built-in task: there are {', '.join(tasks.BUILTIN)}"
    )


def test_options_that_do_not_apply_are_refused():
    with pytest.raises(TaskError, match="prompt= does not apply"):
        tasks.load("builtin:capital", prompt="subject")
    with pytest.raises(TaskError, match=r"template 1 is 'none': want a text with \{\}"):
        tasks.load("builtin:capital", template="none")
