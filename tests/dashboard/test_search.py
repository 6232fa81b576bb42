"""`Search`: rows by text, verdict and conditions, within a time, and honest about it."""

import pytest

from halp_probe.judging.verdict import Label
from halp_store.query import FilterError
from halp_store.reader import open_store
from halp_worker.dashboard import search as search_module
from halp_worker.dashboard.search import Search, Searches, Wanted

from .conftest import write_rows


def row(number, **texts):
    return {
        "question_id": f"q{number:05d}",
        "question_text": f"Is there a kettle, {number}?",
        "ground_truth": "No",
        "answer": "No." if number % 3 else "Yes.",
        "metadata": f'{{"kind": "{"odd" if number % 2 else "even"}"}}',
        **texts,
    }


def store_of_40(folder):
    """In segments of 10."""
    path = folder / "s.zarr"
    for start in range(0, 40, 10):
        write_rows(path, [row(number) for number in range(start, start + 10)])
    return path


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return open_store(store_of_40(tmp_path_factory.mktemp("store")))[:]


def found(view, **wanted):
    search = Search(view, Wanted(**wanted))
    search.go_on(60)
    assert search.is_over
    return search.ids


def test_a_text_is_found_in_id_question_truth_and_answer_in_any_case(view):
    """And all found ids are in order."""
    assert found(view, text="Q0000") == [f"q{number:05d}" for number in range(10)]
    assert found(view, text="kettle, 17") == ["q00017"]
    assert found(view, text="yes") == [f"q{number:05d}" for number in range(0, 40, 3)]


def test_verdict_and_conditions_hold_together(view):
    """The conditions are those of `halp-store query`."""
    conditions = ("metadata.kind=odd", "answer_tokens>5")
    expected = [f"q{number:05d}" for number in range(40) if number % 2 and number % 3 == 0]
    assert found(view, verdict=Label.WRONG, conditions=conditions) == expected


@pytest.mark.parametrize("condition", ["answer~(a+)+$", "answer !~ x", "nothing=1", "answer"])
def test_a_condition_that_cannot_be_taken_is_refused(view, condition):
    """A regular expression could run for ever, on a page that somebody else may have a link to."""
    with pytest.raises(FilterError):
        Search(view, Wanted(conditions=(condition,)))


@pytest.mark.parametrize("condition", ["answer=a~b", "metadata.kind!=~"])
def test_a_value_may_hold_a_tilde(view, condition):
    """It is no operator there."""
    Search(view, Wanted(conditions=(condition,)))


def test_a_search_that_is_stopped_says_how_far_it_came_and_goes_on(view, monkeypatch):
    """Nothing is looked at twice, nothing is left out."""
    monkeypatch.setattr(search_module, "_BATCH_ROWS", 16)
    search = Search(view, Wanted(text="kettle"))
    search.go_on(0)
    assert (search.searched, search.is_over, len(search.ids)) == (16, False, 16)
    search.go_on(0)
    assert search.searched == 32
    search.go_on(60)
    assert search.is_over
    assert search.ids == list(view.ids)


def test_a_search_that_came_to_its_end_takes_in_new_rows(tmp_path):
    """As soon as the store shows them."""
    path = tmp_path / "s.zarr"
    write_rows(path, [row(1)])
    store, searches, wanted = open_store(path), Searches(), Wanted(text="kettle")
    assert searches.look(store[:], wanted).ids == ["q00001"]
    write_rows(path, [row(2)])
    store.refresh()
    assert searches.look(store[:], wanted).ids == ["q00001", "q00002"]


def test_a_search_that_was_stopped_keeps_its_rows_until_it_is_begun_anew(tmp_path, monkeypatch):
    """In a store that grows it would never come to an end otherwise."""
    monkeypatch.setattr(search_module, "_BATCH_ROWS", 16)
    monkeypatch.setattr(search_module, "LOOK_S", 0)
    path = store_of_40(tmp_path)
    searches, wanted = Searches(), Wanted(text="kettle")
    searches.look(open_store(path)[:], wanted)
    write_rows(path, [row(99)])
    newer = open_store(path)[:]
    for _ in range(3):
        search = searches.look(newer, wanted)
    assert search.is_over
    assert len(search.ids) == 40
    monkeypatch.setattr(search_module, "LOOK_S", 60)
    assert len(searches.look(newer, wanted, anew=True).ids) == 41
