"""Built-in relations, on real data of installed packages: countryinfo, pycountry, lemminflect.

| relation | answer | from |
|---|---|---|
| capital, demonym, region | as it stands | countryinfo |
| currency | its unit, lower case: "euro", "dollar" | countryinfo's code, pycountry's name of it |
| language | the one official language, without remarks in brackets | codes, names: the same two |
| tld | top-level domain in ASCII: ".fr" | countryinfo |
| french, german, spanish | the country's name in that language | pycountry (iso-codes) |
| past_tense, plural | the inflected word | lemminflect, of the words in `words.py` |

Countries: those with an ISO code and a million people or more, the most populous first; two entries
of one code (Burma, Myanmar) are one country, under ISO's name. Words: commonest first. So the first
n rows make a sensible small task.

Left out, and counted in the task's notes: a subject without an answer or with several (two
languages, "Antiguan,Barbudan", learned/learnt); an answer that repeats its subject (Singapore),
since copying gives it; currencies withdrawn since; names that ISO spells another way in English
(Russian Federation), since the translation is of that; and the entries in `STALE`.
"""

from __future__ import annotations

import gettext
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from mechforget.errors import TaskError
from mechforget.tasks import relations
from mechforget.tasks.files import Records
from mechforget.tasks.words import NOUNS, VERBS

TEMPLATES = {  # the first is the default: with one, a subject has one row
    "capital": ("The capital of {} is", "The capital city of {} is"),
    "currency": ("The currency of {} is the", "The currency used in {} is the"),
    "demonym": ("People from {} are called", "The nationality of a person from {} is"),
    "language": ("The official language of {} is", "Most people in {} speak"),
    "region": ("The part of the world that {} belongs to is", "On the map of the world, {} is in"),
    "tld": ("Web addresses in {} end in", "The internet domain of {} is"),
    "french": ("The French name of {} is", "In French, {} is called"),
    "german": ("The German name of {} is", "In German, {} is called"),
    "spanish": ("The Spanish name of {} is", "In Spanish, {} is called"),
    "past_tense": ("The past tense of {} is", "Today I {}. Yesterday I"),
    "plural": ("The plural of {} is", "One {}, two"),
}
NAMES = tuple(TEMPLATES)

PEOPLE = 1_000_000
STALE = {  # what the packages say and the world does not, or not alone
    "capital": {"Burundi", "Hong Kong", "Kazakhstan", "Palestine", "Swaziland"},
    "demonym": {"Hong Kong", "Kyrgyzstan", "Tajikistan"},
    "language": {"the Philippines", "Mauritania"},
    "french": {"Venezuela"},
    "spanish": {"Tunisia"},
}
FUNDS = {"BOV", "CHE", "CHW", "CLF", "USN", "UYI"}  # ISO 4217 codes that nobody pays with
UNITS = {  # where the unit is not the last word of ISO's name, or English spells it another way
    "CFA Franc BCEAO": "franc",
    "CFA Franc BEAC": "franc",
    "Cordoba Oro": "cordoba",
    "New Israeli Sheqel": "shekel",
    "Peso Uruguayo": "peso",
    "Pound Sterling": "pound",
    "Rial Omani": "rial",
    "Yuan Renminbi": "yuan",
}


def relation(name: str, template: str | None = None) -> tuple[Records, tuple[str, ...]]:
    """(rows, notes) of a built-in relation; the rows have prompt, answer, subject and template.

    template: None: the first of `TEMPLATES[name]`; "all": a row per template and subject; else a
        text with {} for the subject.
    Raises: TaskError: no such relation (the names are listed), a template without {}.
    """
    if name not in TEMPLATES:
        raise TaskError(f"builtin:{name}: no such built-in task: there are {', '.join(NAMES)}")
    templates = TEMPLATES[name]
    used = relations.chosen(templates, template or templates[0], f"builtin:{name}")
    of_words = name in _OF_WORDS
    found = list(_words(*_OF_WORDS[name]) if of_words else _countries(_OF_COUNTRY[name]))
    stale = STALE.get(name, set())
    clear = [(s, *a) for s, a in found if len(a) == 1 and s not in stale]
    samples = [(s, a) for s, a in clear if a != s.removeprefix("the ")]
    packages = ["lemminflect"] if of_words else ["countryinfo", "pycountry"]
    made = " and ".join(f"{package} {version(package)}" for package in packages)
    note = f"{len(samples)} subjects from {made}; {len(found) - len(samples)} without one clear "
    return relations.rows(samples, used), (note + "answer, or with a stale one, are left out",)


Subjects = Iterator[tuple[str, list[str]]]  # with every answer that the packages give


def _words(words: str, tag: str) -> Subjects:
    from lemminflect import getInflection

    for word in words.split():
        forms = getInflection(word, tag)
        # It lists collectives too ("dogs", "dog"): unchanged counts only where it is the only form.
        yield word, [form for form in forms if form != word] or list(forms)


def _countries(answers: Callable[[Any, Any], list[str | None]]) -> Subjects:
    import pycountry
    from countryinfo import all_countries

    by_code: dict[str, tuple[Any, Any]] = {}
    for country in all_countries():
        iso = pycountry.countries.get(alpha_2=country.iso(2) or "")
        if iso is None or (country.population() or 0) < PEOPLE:
            continue
        if iso.alpha_2 not in by_code or country.name() == iso.name:
            by_code[iso.alpha_2] = (country, iso)
    largest_first = sorted(by_code.values(), key=lambda c: (-c[0].population(), c[0].name()))
    for country, iso in largest_first:
        given = (answer.strip() for answer in answers(country, iso) if answer)
        yield _with_article(country.name()), list(dict.fromkeys(given))


def _with_article(country: str) -> str:
    """As it stands inside a sentence: "the Netherlands"."""
    if re.match("The |United |Netherlands|Philippines", country) or "Republic" in country:
        return "the " + country.removeprefix("The ")
    return country


def _capital(country: Any, iso: Any) -> list[str | None]:
    return [country.capital()]


def _demonym(country: Any, iso: Any) -> list[str | None]:
    return re.split("[,/]", country.demonym() or "")


def _region(country: Any, iso: Any) -> list[str | None]:
    return [country.region()]


def _tld(country: Any, iso: Any) -> list[str | None]:
    return [domain for domain in country.tld() if domain[0] == "." and domain.isascii()]


def _currency(country: Any, iso: Any) -> list[str | None]:
    import pycountry

    codes = (pycountry.currencies.get(alpha_3=c) for c in country.currencies() if c not in FUNDS)
    names = [code.name for code in codes if code is not None]  # None: withdrawn since
    return [UNITS.get(name, name.split()[-1].lower()) for name in names]


def _language(country: Any, iso: Any) -> list[str | None]:
    import pycountry

    codes = country.languages()
    known = [found for code in codes if (found := pycountry.languages.get(alpha_2=code))]
    if len(known) < len(codes):  # one that nobody can name: then the others are not all
        return []
    names = (language.name.partition(" (")[0] for language in known)
    return [name.replace("Modern Greek", "Greek") for name in names]


def _name_in(language: str) -> Callable[[Any, Any], list[str | None]]:
    def name(country: Any, iso: Any) -> list[str | None]:
        import pycountry

        english = getattr(iso, "common_name", iso.name)
        if english != country.name():
            return []
        iso_codes = gettext.translation("iso3166-1", pycountry.LOCALES_DIR, [language])
        return [iso_codes.gettext(english)]

    return name


_OF_WORDS = {"past_tense": (VERBS, "VBD"), "plural": (NOUNS, "NNS")}
_OF_COUNTRY: dict[str, Callable[[Any, Any], list[str | None]]] = {
    "capital": _capital,
    "currency": _currency,
    "demonym": _demonym,
    "language": _language,
    "region": _region,
    "tld": _tld,
    "french": _name_in("fr"),
    "german": _name_in("de"),
    "spanish": _name_in("es"),
}
