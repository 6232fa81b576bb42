"""The page: whole, by itself, and harmless whatever the texts are."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest

from halp_probe.judging.verdict import Kind, Label, Verdict
from halp_probe.report.examples import Example, Outcome
from halp_probe.report.highlights import highlights_of
from halp_probe.report.page import About, page_of
from halp_probe.report.pictures import Picture
from halp_probe.report.plots import draw_all
from halp_probe.report.writing import write_report
from halp_probe.results import Counts, Group, Interval, Part
from halp_store.reader import open_store

from .report_evaluation import NOTHING, make_evaluation, make_verdicts, write_store

MADE = datetime(2026, 11, 25, 14, 30, tzinfo=UTC)
ABOUT = About(MADE, "halp-probe report run1.zarr out", {"numpy": "2.0"})
HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "javascript:window.hacked=1//{{7*7}}${7*7}{% raw %}",
    "\u202ereversed\u202c \x00\x1b[31m\ufffd\u2028",
    "</style></title><style>*{display:none}",
    "x" * 1_000_000,
)
_VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """tags: (name, attributes) in order. text: all of it; visible: without the style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self.text += " "

    def handle_data(self, data):
        if not {"style", "script"} & set(self._open):
            self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(self.text.split())


def example(text="Is there a kettle?", picture=None):
    return Example(
        question_id=text,
        question=text,
        answer=text,
        truth=text,
        rule=text,
        note=text,
        risk=0.9,
        above=0.95,
        picture=picture or Picture(None, text),
    )


def rendered(evaluation, text="Is there a kettle?"):
    examples = {outcome: (example(text),) for outcome in Outcome}
    return page_of(evaluation, (), examples, ABOUT)


@pytest.fixture(scope="module")
def evaluation():
    return make_evaluation(rows=120)


@pytest.fixture(scope="module")
def html(evaluation):
    plots = draw_all(evaluation, highlights_of(evaluation))
    return page_of(evaluation, plots, {one: (example(),) for one in Outcome}, ABOUT)


def figures_in(value):
    """Every AUROC and the like of an evaluation's JSON."""
    if isinstance(value, dict):
        for one in value.values():
            yield from figures_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from figures_in(one)
    elif isinstance(value, float):
        yield value


def test_every_figure_of_the_evaluation_is_on_the_page(evaluation, html):
    """Rounded to three digits, as often as it occurs at least; and every count."""
    whole = evaluation.to_json()
    settings = whole.pop("settings")
    wanted = Counter(f"{one:.3f}" for one in figures_in(whole))
    found = Counter(re.findall(r"\d\.\d{3}", Page(html).text))
    assert len(wanted) > 100
    assert {key: (count, found[key]) for key, count in wanted.items() if found[key] < count} == {}
    words = Page(html).words
    for name, (rows, wrong) in (evaluation.counts.kinds | evaluation.counts.sources).items():
        assert re.search(rf"{name} {rows} {wrong} ", words)
    for name, rows in evaluation.counts.labels.items():
        assert f"{name} {rows} " in words
    assert str(settings["seconds"]) in words


def test_every_entry_transfer_leak_and_pick_is_named(evaluation, html):
    """In the table and in the sections."""
    words = Page(html).words
    for one in evaluation.entries:
        assert one.name in words
        assert one.note in words
    for names in evaluation.picks.values():
        for name, count in names.items():
            assert f"{name} {count}" in words
    for title in ("Transfer between sources", "Leak: folds by question", "Shuffled labels"):
        assert title in words


def test_the_page_says_where_it_is_from(evaluation, html):
    """Store, model, judge, time, command, versions."""
    words = Page(html).words
    for one in (evaluation.store, evaluation.model, evaluation.judge, "2026-11-25 14:30 UTC",
                ABOUT.command, "numpy 2.0"):  # fmt: skip
        assert one in words
    assert "What these numbers do not mean" in words


def test_the_page_needs_nothing_else(html):
    """No script, no address but its own anchors and data: nothing to ask a server for."""
    page = Page(html)
    tags = {name for name, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "audio"}
    assert len(page.named("img")) == 6
    for name, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on")
            assert key != "style"
            if key in {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}:
                assert value.startswith("data:image/" if name == "img" else "#")
    assert not re.search(r"url\(|@import|https?://", html)
    anchors = {one.get("id") for _, one in page.tags}
    assert {one["href"][1:] for one in page.named("a")} <= anchors


def test_a_policy_forbids_what_is_not_there_anyway(html):
    """Its style is allowed by its hash alone."""
    (policy,) = [
        one["content"]
        for one in Page(html).named("meta")
        if one.get("http-equiv") == "Content-Security-Policy"
    ]
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_text(evaluation, text):
    """The same tags with the same attributes as with plain texts, and no character that steers."""
    entries = tuple(
        replace(one, name=text, note=text) if one.group is Group.BASELINE else one
        for one in evaluation.entries
    )
    part = Part(10, 4, Interval(0.6, 0.5, 0.7))

    def with_text(some):
        return replace(
            evaluation,
            store=some,
            model=some,
            judge=some,
            settings={some: some, "many": [some]},
            picks={some: {some: 3}},
            entries=tuple(
                replace(one, name=some, note=some, by_kind={some: part, "b": part})
                if one.group is Group.BASELINE
                else one
                for one in entries
            ),
            counts=replace(evaluation.counts, kinds={some: (10, 4)}, sources={some: (10, 4)}),
            transfers=tuple(
                replace(one, name=some, trained_on=some, tested_on=some)
                for one in evaluation.transfers[:1]
            ),
            leaks=tuple(replace(one, name=some) for one in evaluation.leaks),
        )

    hostile, plain = (Page(rendered(with_text(some), some)) for some in (text, "plain"))
    shape = [(tag, sorted(attributes)) for tag, attributes in hostile.tags]
    assert shape == [(tag, sorted(attributes)) for tag, attributes in plain.tags]
    steering = re.compile("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2028\u2066-\u2069\ud800-\udfff]")
    assert not steering.search(hostile.text)
    if len(text) < 1000:
        assert "".join(text.split("\u202e")[0].split()) in "".join(hostile.text.split())
    else:
        assert len(hostile.text) < 200_000


def test_a_picture_is_in_the_page_and_its_absence_says_why(evaluation):
    """As a JPEG data URI; else the reason stands in its place."""
    examples = {
        Outcome.CAUGHT: (example(picture=Picture(b"\xff\xd8jpeg")),),
        Outcome.MISSED: (example(picture=Picture(None, "the file has changed")),),
        Outcome.QUIET: (),
    }
    page = Page(page_of(evaluation, (), examples, ABOUT))
    encoded = base64.b64encode(b"\xff\xd8jpeg").decode()
    assert [one["src"] for one in page.named("img")] == [f"data:image/jpeg;base64,{encoded}"]
    assert "the file has changed" in page.words
    assert "Right answers with the lowest risk. There are none." in page.words


def test_a_figure_that_does_not_exist_is_a_dash(evaluation):
    """Never `nan`, in the table, the summary and the parts."""
    entries = tuple(
        replace(
            one,
            auroc=NOTHING,
            auprc=NOTHING,
            ece=NOTHING,
            aurc=NOTHING,
            by_kind={key: replace(part, auroc=NOTHING) for key, part in one.by_kind.items()},
        )
        for one in evaluation.entries
    )
    nothing = replace(
        evaluation,
        entries=entries,
        transfers=tuple(replace(one, auroc=NOTHING) for one in evaluation.transfers),
        leaks=tuple(replace(one, by_question=NOTHING) for one in evaluation.leaks),
        picked_on_test={"logistic": ("query_token@3", math.nan)},
    )
    words = Page(rendered(nothing)).words
    assert not re.search(r"\bnan\b|\bNone\b|\bnull\b", words, re.IGNORECASE)
    assert words.count("–") > 100


def test_an_evaluation_of_nothing_is_a_page():
    """No entry, no transfer, no leak, no row."""
    nothing = replace(
        make_evaluation(rows=60, seeds=1),
        counts=Counts(0, {}, 0, 0, 0, {}, {}),
        entries=(),
        picks={},
        picked_on_test={},
        transfers=(),
        leaks=(),
        settings={},
        ids=(),
        wrong=np.zeros(0, bool),
    )
    words = Page(page_of(nothing, (), {}, ABOUT)).words
    assert "Of 0 stored answers" in words
    assert "Not measured." in words


@pytest.mark.slow
def test_ten_thousand_rows_are_a_page_that_can_be_sent(tmp_path):
    """Less than 5 MB with plots and pictures, and the folder has all that was said."""
    evaluation = make_evaluation(rows=10_000)
    store = tmp_path / "s.zarr"
    write_store(store, evaluation)
    verdicts = make_verdicts(evaluation)
    verdicts[evaluation.ids[0]] = Verdict(Label.WRONG, "r", Kind.SHORT)
    steps = []
    page = write_report(
        evaluation,
        open_store(store),
        verdicts,
        tmp_path / "out",
        image_root=tmp_path / "images",
        command=ABOUT.command,
        made=MADE,
        told=lambda done, total: steps.append((done, total)),
    )
    assert page == tmp_path / "out" / "index.html"
    assert page.stat().st_size < 5_000_000
    assert steps[-1][0] == steps[-1][1]
    names = {one.name for one in (tmp_path / "out").iterdir()}
    plots = {"auroc", "heatmap", "roc", "reliability", "risk_coverage", "parts"}
    assert names == {"index.html", "evaluation.json", *(f"{one}.png" for one in plots)}
    assert len(Page(page.read_text(encoding="utf-8")).named("img")) == 6 + 24
    written = json.loads((tmp_path / "out" / "evaluation.json").read_bytes())
    assert written == json.loads(json.dumps(evaluation.to_json()))
