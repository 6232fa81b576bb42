"""A store has an id, and what was written for another store or configuration is refused by all."""

import dataclasses
import json
import shutil

import pytest

from halp_store.compaction import compact
from halp_store.errors import ForeignSegment, GenerationMissing, NotAStore, StoreGone
from halp_store.generation import PRUNED
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.root import Root, claim_root, read_root, root_document
from halp_store.verification import ProblemKind
from halp_store.verify import verify_store


def _old_store(path, layout):
    """Version 2: no id, no stamps but the layout version."""
    path.mkdir()
    (path / "zarr.json").write_bytes(root_document(Root(layout, 2, None)))
    return path


def _files(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_each_store_has_an_id_of_its_own(tmp_path, open_writer, layout):
    """Two of one configuration differ in it alone, and both carry one digest."""
    roots = []
    for name in ("a", "b"):
        open_writer(tmp_path / name)
        roots.append(read_root(LocalStorage(tmp_path / name)))
    assert roots[0].layout == roots[1].layout == layout
    assert roots[0].fingerprint_digest == roots[1].fingerprint_digest
    assert roots[0].store_id != roots[1].store_id


def test_a_digest_covers_all_of_the_layout(layout, plain):
    """Any field that differs gives another one; the order of the fingerprint's fields does not."""
    other = {**layout.fingerprint, "max_new_tokens": 201}
    turned = dict(reversed(list(layout.fingerprint.items())))
    layouts = [
        layout,
        plain,
        dataclasses.replace(layout, layers=(0, 4)),
        dataclasses.replace(layout, fingerprint=other),
    ]
    assert len({Root.new(each).fingerprint_digest for each in layouts}) == len(layouts)
    same = dataclasses.replace(layout, fingerprint=turned)
    assert Root.new(same).fingerprint_digest == Root.new(layout).fingerprint_digest


@pytest.mark.parametrize("field", ["store_id", "fingerprint_digest", "layers"])
def test_a_root_whose_fields_contradict_each_other_is_refused(tmp_path, open_writer, field):
    """Somebody has edited it: nobody knows which rows these are."""
    open_writer(tmp_path)
    document = json.loads((tmp_path / "zarr.json").read_bytes())
    document["attributes"][field] = [0, 1] if field == "layers" else ""
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    for opening in (open_store, open_writer):
        with pytest.raises(NotAStore, match=field if field == "store_id" else "digest"):
            opening(tmp_path)


@pytest.fixture(params=["other layers", "same configuration", "version 2, other layers"])
def mixed(request, tmp_path, open_writer, make_rows, layout):
    """(a store into which another store's segments were copied, their names)"""
    others = layout
    if "layers" in request.param:
        others = dataclasses.replace(layout, layers=(1, 3))
    paths = tmp_path / "this", tmp_path / "other"
    for path, of, ids in zip(paths, (layout, others), (["a", "b"], ["c", "d"]), strict=True):
        if request.param.startswith("version 2"):
            _old_store(path, of)
        writer = open_writer(path, of)
        writer.append(make_rows(ids, of=of))
        writer.flush()
    names = [segment.name for segment in (paths[1] / "segments").iterdir()]
    for name in names:
        shutil.copytree(paths[1] / "segments" / name, paths[0] / "segments" / name)
    return paths[0], names


def test_segments_of_another_store_are_refused_by_name(mixed, open_writer):
    """By reader, writer, compaction and verify; nothing that a reader sees is changed."""
    path, (name,) = mixed
    before = _files(path)
    with pytest.raises(ForeignSegment, match=f"segment {name} does not belong to this store"):
        open_store(path).array("query_token", layer=0)
    with pytest.raises(ForeignSegment, match=name):
        compact(LocalStorage(path))
    prune(LocalStorage(path), grace_seconds=0)
    if read_root(LocalStorage(path)).store_id:
        with pytest.raises(ForeignSegment, match=name):
            open_writer(path)
    kept = {file: value for file, value in _files(path).items() if "compacted" not in file.parts}
    assert kept == before
    kinds = {problem.kind for problem in verify_store(path).problems if problem.segment == name}
    assert kinds & {ProblemKind.FOREIGN, ProblemKind.LAYERS}


def test_without_the_foreign_segment_the_store_is_whole_again(mixed):
    """What the message says to do."""
    path, (name,) = mixed
    shutil.move(path / "segments" / name, path.parent / "moved")
    shutil.rmtree(path / "compacted", ignore_errors=True)
    assert list(open_store(path)) == ["a", "b"]
    assert verify_store(path).ok


def test_a_generation_of_another_store_is_refused_by_name(tmp_path, fill):
    """Also by a compaction that would take it for its base."""
    for name, ids in (("this", ["a"]), ("other", ["b"])):
        fill(tmp_path / name, ids)
    compact(LocalStorage(tmp_path / "other"))
    shutil.copytree(tmp_path / "other/compacted", tmp_path / "this/compacted")
    for opening in (open_store, lambda path: compact(LocalStorage(path))):
        with pytest.raises(ForeignSegment, match="generation compacted/000001"):
            opening(tmp_path / "this")
    (problem,) = (
        problem
        for problem in verify_store(tmp_path / "this").problems
        if problem.kind == ProblemKind.FOREIGN
    )
    assert problem.segment == "compacted/000001"


def test_a_worker_writes_nothing_into_a_store_that_took_the_place_of_its_own(
    tmp_path, open_writer, make_rows, layout
):
    """Deleted and made anew in the same folder, with the same or another configuration."""
    for number, of in enumerate((layout, dataclasses.replace(layout, layers=(1, 3)))):
        path = tmp_path / str(number)
        writer = open_writer(path)
        writer.append(make_rows(["a"]))
        assert writer.flush().receipt
        for entry in path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        claim_root(LocalStorage(path), of)
        before = _files(path)
        writer.append(make_rows(["b"]))
        for asking in (
            writer.flush,
            writer.refresh,
            lambda writer=writer: writer.receipt_for(make_rows(["a"]).keys),
        ):
            with pytest.raises(StoreGone, match="not there any more"):
                asking()
        assert writer.rows_buffered == 1
        assert _files(path) == before
        assert verify_store(path).ok


def test_an_open_reader_says_that_its_store_was_exchanged(tmp_path, fill, open_writer):
    """`refresh` and `follow` raise; rows of another store are never shown as this one's."""
    fill(tmp_path / "s", ["a"])
    store = open_store(tmp_path / "s")
    shutil.rmtree(tmp_path / "s")
    fill(tmp_path / "s", ["b"])
    for asking in (
        store.refresh,
        lambda: next(store.follow(idle_seconds=0)),
        lambda: store.array("query_token"),
    ):
        with pytest.raises(StoreGone) as caught:
            asking()
        assert "or delete segments" not in str(caught.value)


def test_a_store_without_the_generation_that_stands_for_pruned_segments_is_an_error(
    tmp_path, fill, open_writer
):
    """As a copy is that listed `compacted` before the compaction and `segments` after the prune."""
    fill(tmp_path / "s", ["a", "b"])
    compact(LocalStorage(tmp_path / "s"))
    prune(LocalStorage(tmp_path / "s"), grace_seconds=0)
    shutil.copytree(tmp_path / "s", tmp_path / "copy", ignore=lambda *_: {"000001"})
    for opening in (open_store, open_writer, lambda path: compact(LocalStorage(path))):
        with pytest.raises(GenerationMissing, match="compacted/000001 is missing"):
            opening(tmp_path / "copy")
    assert [problem.segment for problem in verify_store(tmp_path / "copy").problems] == [
        "compacted/000001"
    ]


def test_one_marker_is_kept_of_all_prunings(tmp_path, fill):
    """The newest; a later generation satisfies it."""
    for number in range(1, 4):
        fill(tmp_path, [f"q{number}"])
        compact(LocalStorage(tmp_path))
        prune(LocalStorage(tmp_path), grace_seconds=0)
        assert LocalStorage(tmp_path).list_names(PRUNED) == [f"{number:06d}.json"]
    fill(tmp_path, ["last"])
    compact(LocalStorage(tmp_path))
    assert len(open_store(tmp_path)) == 4
    assert verify_store(tmp_path).ok
