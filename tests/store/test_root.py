"""A path holds one model configuration, and what is not a store is not touched."""

import dataclasses
import json

import pytest
import zarr

from halp_store.errors import LayoutVersionError, NotAStore, StoreMismatch
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.root import stored_scores


def test_the_root_says_what_the_store_is_made_of(tmp_path, open_writer, layout):
    """Layout and fingerprint come back from the root, which plain zarr opens too."""
    open_writer(tmp_path / "deep" / "s")
    store = open_store(tmp_path / "deep" / "s")
    assert store.layout == layout
    assert (store.layers, store.positions) == ((0, 3), ("vision_token", "query_token"))
    attributes = zarr.open_group(tmp_path / "deep" / "s", mode="r").attrs.asdict()
    assert (attributes["layout_version"], tuple(attributes["scores"])) == (3, layout.scores)
    assert attributes["fingerprint"] == layout.fingerprint


def test_a_second_writer_of_the_same_configuration_is_welcome(tmp_path, open_writer):
    """Opening again compares, and leaves the root as it is."""
    open_writer(tmp_path)
    before = (tmp_path / "zarr.json").read_bytes()
    open_writer(tmp_path)
    assert (tmp_path / "zarr.json").read_bytes() == before


def test_another_configuration_is_refused_with_the_fields_that_differ(
    tmp_path, open_writer, layout
):
    """All of them at once, dotted into the fingerprint, with both values."""
    open_writer(tmp_path)
    fingerprint = {"model": {"id": "large", "revision": "abc"}, "dtype": "float32"}
    other = dataclasses.replace(layout, layers=(0, 2), fingerprint=fingerprint)
    with pytest.raises(StoreMismatch) as caught:
        open_writer(tmp_path, other)
    assert caught.value.differences == {
        "fingerprint.dtype": (None, "float32"),
        "fingerprint.max_new_tokens": (200, None),
        "fingerprint.model.id": ("small", "large"),
        "layers": ([0, 3], [0, 2]),
    }
    message = str(caught.value)
    assert "fingerprint.model.id: the store has 'small', this configuration has 'large'" in message
    assert (
        "fingerprint.max_new_tokens: the store has 200, this configuration has nothing" in message
    )
    assert str(tmp_path) in message


def test_scores_are_a_part_of_the_configuration(tmp_path, open_writer, layout, plain):
    """A store without them takes no rows with them, nor the other way round; the field is named."""
    for stored, ours in ((plain, layout), (layout, plain)):
        path = tmp_path / str(len(stored.scores))
        open_writer(path, stored)
        with pytest.raises(StoreMismatch) as caught:
            open_writer(path, ours)
        lists = [list(each.scores) or None for each in (stored, ours)]
        assert caught.value.differences["scores"] == tuple(lists)
    fewer = dataclasses.replace(layout, scores=layout.scores[:-1])
    with pytest.raises(StoreMismatch) as caught:
        open_writer(path, fewer)
    assert caught.value.differences == {"scores": (list(layout.scores), list(fewer.scores))}


def test_a_store_says_which_scores_it_has_before_it_is_opened(tmp_path, open_writer, layout, plain):
    """None where there is no store yet: a worker that begins one chooses."""
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "empty"):
        assert stored_scores(LocalStorage(tmp_path / name)) is None
    open_writer(tmp_path / "old", plain)
    assert stored_scores(LocalStorage(tmp_path / "old")) == ()
    open_writer(tmp_path / "new", layout)
    assert stored_scores(LocalStorage(tmp_path / "new")) == layout.scores
    _other_files(tmp_path / "other")
    with pytest.raises(NotAStore):
        stored_scores(LocalStorage(tmp_path / "other"))


@pytest.mark.parametrize(
    ("version", "scores"),
    [
        (1, ["risk"]),
        (2, []),
        (2, None),
        (2, ["risk", "mean_logprob"]),
        (2, ["risk", "risk"]),
        (2, ["risk", "mood"]),
        (3, ["risk", "mood"]),
    ],
)
def test_scores_that_do_not_go_with_the_version_are_no_store_of_ours(
    tmp_path, open_writer, version, scores
):
    """A reader would take a column for what it is not."""
    open_writer(tmp_path)
    root = tmp_path / "zarr.json"
    document = json.loads(root.read_bytes())
    document["attributes"].update({"layout_version": version, "scores": scores})
    root.write_text(json.dumps(document))
    with pytest.raises(NotAStore, match="attributes are not whole"):
        open_store(tmp_path)


def test_an_unknown_layout_version_is_refused_by_name(tmp_path, open_writer):
    """Neither read nor written: a later release may mean something else by it."""
    open_writer(tmp_path)
    root = tmp_path / "zarr.json"
    document = json.loads(root.read_bytes())
    document["attributes"]["layout_version"] = 99
    root.write_text(json.dumps(document))
    for opening in (open_store, open_writer):
        with pytest.raises(LayoutVersionError, match="layout version: expected 3, got 99"):
            opening(tmp_path)


def _nothing(path):
    pass


def _a_folder(path):
    path.mkdir()


def _a_file(path):
    path.write_text("x")


def _a_foreign_group(path):
    zarr.create_group(path, attributes={"mine": 1})


def _a_foreign_array(path):
    zarr.create_array(path, shape=(1,), dtype="int8")


def _broken_json(path):
    path.mkdir()
    (path / "zarr.json").write_text("{")


def _other_files(path):
    path.mkdir()
    (path / "thesis.tex").touch()


def _half_a_root(path):
    path.mkdir()
    (path / "zarr.json").write_text('{"attributes": {"layout_version": 1}}')


FOREIGN = [_a_file, _a_foreign_group, _a_foreign_array, _broken_json, _other_files]


@pytest.mark.parametrize("make", [_nothing, _a_folder, *FOREIGN, _half_a_root])
def test_what_is_not_a_store_is_not_opened(tmp_path, make):
    """The message says where, what was expected and what is there."""
    make(tmp_path / "s")
    with pytest.raises(NotAStore, match=r"s: not a store: expected .* found "):
        open_store(tmp_path / "s")


@pytest.mark.parametrize("make", FOREIGN)
def test_a_writer_does_not_write_among_other_things(tmp_path, open_writer, make):
    """Somebody's files, or another Zarr, are left exactly as they are."""
    path = tmp_path / "s"
    make(path)
    before = sorted(path.rglob("*"))
    with pytest.raises(NotAStore):
        open_writer(path)
    assert sorted(path.rglob("*")) == before


def test_a_writer_makes_its_store_in_an_empty_folder(tmp_path, open_writer):
    """Also in a mounted volume with its `lost+found`."""
    (tmp_path / "lost+found").mkdir()
    open_writer(tmp_path)
    assert len(open_store(tmp_path)) == 0
