"""Relations: pairs of subject and object under prompt templates, as in the LRE data set's files.

Format: Hernandez et al. 2023, arXiv:2308.09124, github.com/evandez/relations: `samples` of
{subject, object} and `prompt_templates` with {} for the subject.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from mechforget.errors import TaskError
from mechforget.tasks.files import Records, text

_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")


def read(path: Path, template: str | None = None) -> tuple[Records, str]:
    """(rows, name) of a published relation file: one row per template and sample.

    template: None or "all" for all of `prompt_templates`, or a text with {} to use instead.
    Letters that the published files escape twice (Bras\\\\u00edlia) become letters.
    Raises: TaskError: broken JSON (its line is given), no samples, a malformed sample or template.
    """
    try:
        data = json.loads(text(path))
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}: line {error.lineno} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path}: its JSON can't be read: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("samples"), list):
        raise TaskError(
            f"{path}: no list 'samples': a .json task is a relation file with 'samples' and "
            f"'prompt_templates'; other rows go into .jsonl, an object a line"
        )
    samples = []
    for i, sample in enumerate(data["samples"], 1):
        match sample:
            case {"subject": str(subject), "object": str(answer)} if subject and answer:
                samples.append((_unescaped(subject), _unescaped(answer)))
            case _:
                raise TaskError(f"{path}: sample {i}: want 'subject' and 'object', both text")
    if not samples:
        raise TaskError(f"{path}: 'samples' is empty: want at least one subject with its object")
    templates = data.get("prompt_templates")
    if template is None and (not isinstance(templates, list) or not templates):
        raise TaskError(f"{path}: no list 'prompt_templates': add it, or give template='... {{}}'")
    used = chosen(templates or [], template or "all", str(path))
    name = data.get("name")
    return rows(samples, used), name if isinstance(name, str) and name else path.stem


def chosen(templates: Sequence[object], template: str, source: str) -> list[str]:
    """All templates for "all", else the given text alone; each must have a place for the subject.

    Raises: TaskError: one has no {}.
    """
    used = list(templates) if template == "all" else [template]
    for i, one in enumerate(used, 1):
        if not isinstance(one, str) or "{}" not in one:
            raise TaskError(
                f"{source}: template {i} is {ascii(one)[:60]}: want a text with {{}} "
                f"where the subject goes"
            )
    return [_unescaped(str(one)) for one in used]


def rows(samples: Iterable[tuple[str, str]], templates: Sequence[str]) -> Records:
    """One row per template and sample, template by template."""
    samples = list(samples)
    return [
        {
            "prompt": template.replace("{}", subject),
            "answer": answer,
            "subject": subject,
            "template": template,
        }
        for template in templates
        for subject, answer in samples
    ]


def _unescaped(written: str) -> str:
    """Text in which \\uXXXX, still spelled out, has become its letter (pairs join)."""
    return _ESCAPES.sub(lambda found: json.loads(f'"{found[0]}"'), written)
