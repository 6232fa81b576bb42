"""`page_of`: the report as one HTML page that needs nothing else.

Pictures are data URIs, the style is in the page, there is no script; a content security policy
forbids the browser all the rest. Every text is put in as text.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from halp_probe.report import sentences, tables
from halp_probe.report.examples import Examples, Outcome
from halp_probe.report.highlights import Highlights, highlights_of
from halp_probe.report.plots import Plot
from halp_probe.report.wording import NONE, classifier, counted, number, percent, shown
from halp_probe.results import Evaluation

_TEXT: Final = 400
"""Characters of a question, an answer or a truth: a page is for looking, the store has the rest."""
_SENTENCE: Final = 2000
"""Of ours, with names of data in it."""
_OUTCOMES: Final = {
    Outcome.CAUGHT: ("What it caught", "Wrong answers with the highest risk."),
    Outcome.MISSED: ("What it missed", "Wrong answers with the lowest risk."),
    Outcome.FALSE_ALARM: ("False alarms", "Right answers with the highest risk."),
    Outcome.QUIET: ("Confidently right", "Right answers with the lowest risk."),
}


@dataclass(frozen=True)
class About:
    """made: when, in UTC. command: that makes the page again. versions: package -> version."""

    made: datetime
    command: str
    versions: dict[str, str]


def page_of(
    evaluation: Evaluation, plots: tuple[Plot, ...], examples: Examples, about: About
) -> str:
    """HTML. The same arguments give the same page."""
    folder = files("halp_probe.report")
    style = (folder / "page.css").read_text(encoding="utf-8")
    template = (folder / "page.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["text"] = lambda text: shown(text, _TEXT)
    environment.filters["sentence"] = lambda text: shown(text, _SENTENCE)
    environment.filters["classifier"] = classifier
    environment.filters["number"] = number
    environment.filters["data_uri"] = _data_uri
    highlights = highlights_of(evaluation)
    return environment.from_string(template).render(
        style=Markup(style),  # noqa: S704 - our own file
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        evaluation=evaluation,
        plots={one.name: one for one in plots},
        about=about,
        dash=NONE,
        **_summary(evaluation, highlights),
        **_tables(evaluation, highlights),
        galleries=[
            (*_OUTCOMES[outcome], examples[outcome]) for outcome in _OUTCOMES if outcome in examples
        ],
    )


def _summary(evaluation: Evaluation, highlights: Highlights | None) -> dict[str, Any]:
    counts = evaluation.counts
    found: dict[str, Any] = {
        "highlights": highlights,
        "data_sentence": sentences.data(evaluation),
        "caution": sentences.caution(evaluation),
        "share_wrong": percent(counts.wrong, counts.rows),
        "labelled": counted(counts.rows, "labelled answer"),
        "findings": [],
        "controls": [],
        "picked": [],
    }
    if highlights is None:
        return found
    return found | {
        "findings": [
            sentences.finding(highlights),
            sentences.meaning(highlights.best.auroc.value),
            sentences.against_baseline(highlights),
        ],
        "controls": [
            (sentences.control(one), sentences.control_is_bad(one)) for one in highlights.controls
        ],
        "picked": sentences.picked(evaluation, highlights),
    }


def _tables(evaluation: Evaluation, highlights: Highlights | None) -> dict[str, Any]:
    counts = evaluation.counts
    named = {"kind": (counts.kinds, "by_kind"), "source": (counts.sources, "by_source")}
    return {
        "sections": tables.entry_table(evaluation),
        "chance": tables.chance_mark(),
        "labels": tables.label_counts(counts),
        "kinds": tables.part_counts(counts.kinds),
        "sources": tables.part_counts(counts.sources),
        "parts": [
            (name, parts)
            for name, (of, field) in named.items()
            if (parts := tables.parts_table(evaluation.entries, field, of))
        ],
        "chance_auprc": number(counts.wrong / counts.rows if counts.rows else None),
        "matrices": tables.transfer_matrices(evaluation.transfers),
        "leaks": [(one, sentences.leak(one)) for one in evaluation.leaks],
        "settings": list(tables.flat(evaluation.settings)),
    }


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
