"""What a probe may learn from: the rows that are labelled right or wrong."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest

from halp_probe.errors import ProbeError
from halp_probe.features import Words, read_features
from halp_probe.judging.verdict import Kind, Label, Verdict
from halp_probe.representation import parse_representations
from halp_probe.rows import NoRows, images_of, load_rows

from .planted import LAYOUT, planted_store

ROWS = 40


@pytest.fixture
def planted(tmp_path):
    return planted_store(tmp_path / "run1.zarr", ROWS)


def test_rows_are_those_labelled_right_or_wrong_in_order_of_id(planted):
    """The others are counted and left out; rows without a verdict too."""
    store, verdicts = planted
    other = {"q00003": Label.ABSTAINED, "q00004": Label.UNJUDGED, "q00005": Label.UNJUDGED}
    for one, label in other.items():
        verdicts[one] = Verdict(label, "rule", Kind.SHORT)
    del verdicts["q00007"]
    rows = load_rows(store, dict(reversed(verdicts.items())))
    left = [one for one in store.ids if one not in {*other, "q00007"}]
    assert rows.ids == tuple(left)
    assert rows.wrong.tolist() == [verdicts[one].label is Label.WRONG for one in left]
    assert rows.counts.stored == ROWS
    assert rows.counts.rows == len(rows) == ROWS - 4
    assert rows.counts.labels == {
        **Counter(str(one.label) for one in verdicts.values()),
        "unlabelled": 1,
    }
    assert rows.counts.images == len(set(rows.images)) == ROWS // 4
    assert rows.images[0] == "0" * 64
    assert (np.unique(rows.images, return_inverse=True)[1] == rows.groups).all()
    assert rows.questions[0] == "What colour is thing 0?"
    assert (rows.answer_lengths == 3).all()
    assert rows.length_unit == "tokens"


def test_kind_and_source_are_the_metadatas_where_all_rows_have_them(planted):
    """`kind` and `dataset` without being asked for; counted with their wrong rows."""
    store, verdicts = planted
    rows = load_rows(store, verdicts)
    assert (rows.kind_field, rows.source_field) == ("kind", "dataset")
    assert set(rows.kinds) == {"colour", "number"}
    assert sum(count for count, _ in rows.counts.sources.values()) == ROWS
    wrong = sum(bad for one, bad in zip(rows.kinds, rows.wrong, strict=True) if one == "colour")
    assert rows.counts.kinds["colour"] == (ROWS // 2, wrong)
    assert load_rows(store, verdicts, kind_field="metadata.dataset").kinds == rows.sources


def test_a_field_that_rows_lack_is_refused_with_those_there_are(planted):
    """The sentence names the option, the count and the fields."""
    store, verdicts = planted
    sentence = "--source-field colour: 40 of 40 labelled rows have none; the metadata has dataset"
    with pytest.raises(ProbeError, match=re.escape(sentence)):
        load_rows(store, verdicts, source_field="colour")


def test_no_labelled_row_says_what_to_do(planted):
    """Counts of what there is, and the command."""
    store, verdicts = planted
    abstained = {one: Verdict(Label.ABSTAINED, "r", Kind.SHORT) for one in list(verdicts)[:30]}
    with pytest.raises(NoRows, match=r"30 abstained, 10 unlabelled.*halp-probe label"):
        load_rows(store, abstained)


def test_an_image_is_its_content_where_that_is_known():
    """Two paths of one content are one image; a path whose content another row knows is that."""
    hashes, paths = ["aa", "aa", "", "", "bb"], ["1.png", "2.png", "1.png", "3.png", "4.png"]
    assert images_of(hashes, paths, "x") == ("aa", "aa", "aa", "3.png", "bb")
    with pytest.raises(ProbeError, match=r"x: 1 of 2 labelled rows have neither"):
        images_of(["aa", ""], ["1.png", ""], "x")


def test_scores_are_read_where_the_store_has_them(tmp_path):
    """By name, in order of the rows."""
    layout = dataclasses.replace(LAYOUT, scores=("first_token_entropy", "mean_logprob"))
    store, verdicts = planted_store(tmp_path / "scored.zarr", ROWS, layout=layout)
    rows = load_rows(store, verdicts)
    assert set(rows.scores) == {"first_token_entropy", "mean_logprob"}
    expected = store.read(["mean_logprob"])["mean_logprob"]
    np.testing.assert_array_equal(rows.scores["mean_logprob"], expected)


def test_features_are_side_by_side_in_order_of_the_rows(planted):
    """As the store has them, whichever rows are asked for."""
    store, _ = planted
    parts = parse_representations(LAYOUT, "vision_only+query_token@1")
    ids = ("q00009", "q00002", "q00030")
    found = read_features(store, parts, ids)
    every = store.read(["vision_only", "query_token"])
    for row, one in enumerate(ids):
        at = store.ids.index(one)
        expected = [*every["vision_only"][at], *every["query_token"][at, 1]]
        np.testing.assert_array_equal(found[row], np.array(expected, np.float32))
    assert found.dtype == np.float32


def test_a_bag_of_words_knows_the_words_of_the_training_rows_alone():
    """A word that only a test row has is no feature; texts without words are rows too."""
    words = Words(("red car", "red bus", "green car", "", "purple"))
    known, seen = words.split(np.arange(4), np.array([4]))
    assert known.shape[1] == seen.shape[1]
    again, other = Words((*words.texts[:4], "yellow")).split(np.arange(4), np.array([4]))
    np.testing.assert_array_equal(known, again)
    np.testing.assert_array_equal(seen, other)
