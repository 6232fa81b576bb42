"""Damage to a generation is loud: verify finds it, and no reader makes anything up of it."""

import dataclasses
import json
import re
import shutil
from itertools import product

import google_crc32c
import numpy as np
import pytest
import zarr

from halp_store import generation_writer
from halp_store.chunks import ArrayFormat
from halp_store.compaction import compact
from halp_store.errors import DamagedSegment, GenerationMissing, LayoutVersionError, NotAStore
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.published import PublishedGroup
from halp_store.reader import open_store
from halp_store.verification import ProblemKind
from halp_store.verify import verify_store

from .conftest import HARMS, assert_columns, empty, remove

NAME = "compacted/000001"
IDS = [f"q{number}" for number in range(5)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, layout, open_writer, make_rows):
    """A pruned store of one generation: its rows are nowhere else. Not to be changed."""
    path = tmp_path_factory.mktemp("damage") / "s"
    with pytest.MonkeyPatch.context() as patch:
        # Two shards and three chunks of few rows; the last ones are not full.
        patch.setattr(generation_writer, "SHARD_ROWS", 4)
        patch.setattr(generation_writer, "CHUNK_ROWS", 2)
        patch.setattr(generation_writer, "TEXT_ROWS", 3)
        writer = open_writer(path)
        writer.append(make_rows(IDS))
        writer.flush()
        compact(LocalStorage(path))
        prune(LocalStorage(path), grace_seconds=0)
    assert verify_store(path).ok
    return path


@pytest.fixture
def path(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "s")


@pytest.fixture(scope="module")
def good(make_rows):
    return make_rows(IDS)


def _files(path):
    return sorted(one for one in (path / NAME).rglob("*") if one.is_file())


def _array_of(path, file):
    """None for the generation's own zarr.json."""
    return None if file.parent == path / NAME else file.parent.name


def _assert_right_or_refused(path, good, array):
    """What a reader gets of that column and of a row is right, or it is told by name."""
    try:
        store = open_store(path)
        assert list(store) == IDS
        columns = [array] if array in store.columns else list(store.columns)
        read = store.read(columns)
        for column in columns:
            kind = next(k for k in (good.text, good.numbers) if column in k)
            np.testing.assert_array_equal(read[column], np.array(kind[column]), err_msg=column)
    except DamagedSegment as error:
        assert error.segment == NAME  # noqa: PT017 - it need not be raised
    try:
        record = open_store(path)["q3"]
        assert record.answer == good.text["answer"][3]
        np.testing.assert_array_equal(record.arrays["query_token"], good.vectors["query_token"][3])
    except DamagedSegment as error:
        assert error.segment == NAME  # noqa: PT017


@pytest.mark.parametrize("harm", HARMS)
def test_harm_to_any_file_is_found_and_no_reader_makes_anything_up(path, good, harm):
    """Removed, cut short, emptied or with a flipped bit: named with its array and what to do."""
    for file in _files(path):
        array, content = _array_of(path, file), file.read_bytes()
        harm(file)
        found = verify_store(path).problems
        assert found, file
        if array is None:
            # Of the generation as a whole: its stamp, or that it is there at all.
            whole = ("does not belong to this store", "is missing, and segments were removed")
            found = [one for one in found if not any(words in one.sentence for words in whole)]
        for one in found:
            # A flipped bit in the group's zarr.json may be in what it says of an array.
            named = one.array if array is None else array
            assert (one.kind, one.segment, one.array) == (ProblemKind.DAMAGED, NAME, named)
            part = f"array {named}" if named else "its zarr.json"
            assert f"generation {NAME}: {part}: " in one.sentence
        assert all(f"restore {NAME} from a copy" in one.sentence for one in found)
        assert all(f"or delete {NAME} and compact again" in one.sentence for one in found)
        _assert_right_or_refused(path, good, array)
        file.write_bytes(content)
    assert verify_store(path).ok


def test_a_generation_whose_zarr_json_has_gone_is_found(path):
    """Of one that is being written there is a plan: readers and verify look for that."""
    for harm in (remove, empty):
        harm(path / NAME / "zarr.json")
        missing = f"{NAME} is missing, and segments were removed"
        with pytest.raises(GenerationMissing, match=missing):
            open_store(path)
        (problem,) = verify_store(path).problems
        assert missing in problem.sentence
        shutil.move(path / "segments/.pruned", path.parent / "marker")
        with pytest.raises(DamagedSegment, match=rf"{NAME}: its zarr\.json: is missing"):
            open_store(path)
        (problem,) = verify_store(path).problems
        assert "is missing or empty, and no compaction has planned to write it" in problem.sentence
        shutil.move(path.parent / "marker", path / "segments/.pruned")


class Flipped(LocalStorage):
    """As on the disk, but for the bytes of one key."""

    key, value = "", b""

    def read(self, key):
        return self.value if key == self.key else super().read(key)

    def read_range(self, key, start, length):
        if key != self.key:
            return super().read_range(key, start, length)
        start = start if start >= 0 else max(0, len(self.value) + start)
        return self.value[start : start + length]


def test_a_flipped_bit_anywhere_in_the_data_is_refused(path, layout):
    """Every byte of every chunk, shard, index and of the arrays' own metadata, a bit of each."""
    disk = Flipped(path)
    columns = {**layout.integer_columns(), **layout.vector_columns()}
    group = PublishedGroup(disk, NAME, None)
    for file in _files(path):
        if (array := _array_of(path, file)) is None:
            continue
        length = len(layout.layers) if array == "layer" else len(IDS)
        shape = (length, *(columns[array][1] if array in columns else ()))
        disk.key, content = file.relative_to(path).as_posix(), file.read_bytes()
        for offset in range(len(content)):
            flipped = bytearray(content)
            flipped[offset] ^= 1 << offset % 8
            disk.value = bytes(flipped)
            if array in layout.vector_columns():
                group = PublishedGroup(disk, NAME, None)  # which has no shard's index yet
            with pytest.raises(DamagedSegment) as caught:  # noqa: PT012 - one of the two
                group.read(array, shape)
                group.check_own_metadata(array)
            assert (caught.value.segment, caught.value.array) == (NAME, array)


# What a flip of them changes is a time, a name, or what a worker said of itself; no value.
_ONLY_SAID = re.compile(
    rb'"created": "[^"]*"|"segments": \[\[.*?\]\]|"provenance": \[\{.*?\}\]', re.DOTALL
)


def test_a_flipped_bit_anywhere_in_its_zarr_json_harms_no_value(path, good):
    """No reader gets other values; verify finds all but what the metadata says about the origin."""
    file = path / NAME / "zarr.json"
    content = file.read_bytes()
    said = [range(*one.span()) for one in _ONLY_SAID.finditer(content)]
    assert len(said) == 3
    missed = []
    # A prime step and all bits in turn: most keys and numbers, in little time.
    for turn, offset in enumerate(range(0, len(content), 89)):
        data = bytearray(content)
        data[offset] ^= 1 << turn % 8
        file.write_bytes(data)
        if verify_store(path).ok:
            missed.append(offset)
        array = list(good.vectors)[turn % len(good.vectors)]
        _assert_right_or_refused(path, good, array)
    assert [one for one in missed if not any(one in span for span in said)] == []


def _edit(path, change):
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def _grid(document, array, **shapes):
    one = document["consolidated_metadata"]["metadata"][array]
    if "stored" in shapes:
        one["chunk_grid"]["configuration"]["chunk_shape"] = shapes["stored"]
    if "chunk" in shapes:
        one["codecs"][0]["configuration"]["chunk_shape"] = shapes["chunk"]
    if "shape" in shapes:
        one["shape"] = shapes["shape"]


HUGE = 10**30
HOSTILE = [
    {"shape": [HUGE, 2, 8]},
    {"shape": [5, 2]},
    {"shape": [5.0, 2, 8]},
    {"shape": []},
    *({"stored": one} for one in ([0, 2, 8], [HUGE, 2, 8], [4, 2], [-4, 2, 8], ["4", 2, 8])),
    *({"stored": one} for one in ([4.0, 2, 8], [4, HUGE, 8], [5, 2, 8], [], [True, 2, 8])),
    *({"chunk": one} for one in ([0, 1, 8], [HUGE, 1, 8], [2, 1], [2, 1, 1], [-2, 1, 8], [None])),
    {"stored": [4, 4, 4], "chunk": [2, 2, 4]},
]


@pytest.mark.parametrize("shapes", HOSTILE, ids=str)
def test_impossible_numbers_in_the_metadata_are_refused(path, good, shapes):
    """No division by zero, no memory for what cannot be there, no part of a vector."""
    _edit(path / NAME / "zarr.json", lambda document: _grid(document, "query_token", **shapes))
    with pytest.raises(DamagedSegment, match="array query_token: "):
        open_store(path).array("query_token")
    with pytest.raises(DamagedSegment, match="array query_token: "):
        open_store(path)["q1"]
    assert {one.array for one in verify_store(path).problems} == {"query_token"}


@pytest.mark.parametrize("rows", [4, 6, 0, -5, HUGE, "5", None])
def test_another_number_of_rows_is_refused(path, rows):
    """The attribute is compared with the arrays before anything is made room for."""
    change = {"rows": rows}
    _edit(path / NAME / "zarr.json", lambda document: document["attributes"].update(change))
    assert not verify_store(path).ok
    if rows != "5":
        with pytest.raises(DamagedSegment, match=NAME):
            open_store(path)


@pytest.mark.parametrize("entry", list(product([0, 10, 2**40, 2**63, 2**64 - 1], [0, 3, 2**62])))
def test_an_index_that_points_anywhere_is_refused(path, good, entry):
    """Even with the right checksum: beyond the file, into it, of any length."""
    shard = path / NAME / "query_token" / "c.0.0.0"
    document = json.loads((path / NAME / "query_token" / "zarr.json").read_bytes())
    size = ArrayFormat.from_document(document).index_bytes
    content = shard.read_bytes()
    index = np.frombuffer(content[-size:-4], "<u8").copy()
    index[:2] = entry
    checksum = google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    shard.write_bytes(content[:-size] + index.tobytes() + checksum)
    with pytest.raises(DamagedSegment, match=r"array query_token: shard c\.0\.0\.0"):
        open_store(path).array("query_token")
    (problem,) = verify_store(path).problems
    assert (problem.segment, problem.array) == (NAME, "query_token")


@pytest.mark.parametrize("length", [0, 3, 15, 16, 2**31 - 1])
def test_a_chunk_that_lies_about_its_length_is_refused(path, length):
    """Blosc reads as far as its header says: with a right checksum, beyond the chunk."""
    chunk = path / NAME / "answer" / "c.0"
    data = bytearray(chunk.read_bytes()[:-4])
    data[12:16] = length.to_bytes(4, "little")
    chunk.write_bytes(bytes(data) + google_crc32c.value(bytes(data)).to_bytes(4, "little"))
    with pytest.raises(DamagedSegment, match=r"array answer: chunk c\.0 cannot be decoded"):
        open_store(path).text("answer")


@pytest.mark.parametrize("array", ["answer", "image_tokens", "vision_only", "query_token"])
def test_a_chunk_of_another_array_is_refused(path, good, array):
    """Whole and with its checksum, but of another size."""
    file = min((path / NAME / array).glob("c.*"))
    for other in ("layer", "vision_encoder", "image_grid_thw"):
        shutil.copy(min((path / NAME / other).glob("c.*")), file)
        assert not verify_store(path).ok
        _assert_right_or_refused(path, good, array)


DOCUMENTS = {
    "torn": b'{"zarr_format": 3, "node',
    "no group": b"[]",
    "no text": b"\xff\xfe",
    "too deep": b"[" * 9999,
    "a segment's": b'{"attributes": {"layout_version": 1, "question_ids": []}}',
}


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_zarr_json_that_cannot_be_read_is_named(path, open_writer, document):
    """By readers, by writers, by the next compaction and by verify."""
    (path / NAME / "zarr.json").write_bytes(document)
    for use in (open_store, open_writer, lambda path: compact(LocalStorage(path))):
        with pytest.raises(DamagedSegment, match=f"generation {NAME}: its zarr.json: "):
            use(path)
    found = verify_store(path)
    assert [(one.kind, one.segment) for one in found.problems] == [(ProblemKind.DAMAGED, NAME)]
    assert (found.rows, found.generation) == (0, None)


def test_what_can_be_read_is_verified_when_the_newest_generation_cannot(path, open_writer, good):
    """The generation before it and the segments are looked at, and what they lack is missing."""
    writer = open_writer(path, worker="later")
    writer.append(_rows_named(good, ["x"]))
    writer.flush()
    compact(LocalStorage(path))
    (path / "compacted" / "000002" / "zarr.json").write_bytes(b"rubbish")
    found = verify_store(path, expected=dict.fromkeys([*IDS, "x", "m"], ""))
    assert [one.segment for one in found.problems] == ["compacted/000002", None]
    assert (found.rows, found.segments, found.generation) == (6, 1, NAME)


def _rows_named(good, ids):
    some = good.take(list(range(len(ids))))
    return dataclasses.replace(some, text={**some.text, "question_id": tuple(ids)})


def test_a_generation_under_another_number_is_refused(path):
    """Somebody has renamed or copied it."""
    (path / NAME).rename(path / "compacted" / "000007")
    with pytest.raises(DamagedSegment, match="expected generation 7, got 1"):
        open_store(path)
    (problem,) = verify_store(path).problems
    assert problem.segment == "compacted/000007"
    assert "expected generation 7, got 1" in problem.sentence


@pytest.mark.parametrize("version", [0, 4, "1", None, 1.5])
@pytest.mark.parametrize("place", ["root", "segment", "generation"])
def test_another_layout_version_is_refused_by_name(path, open_writer, good, place, version):
    """In the root, in a segment and in a generation: which one, what was expected and what got."""
    writer = open_writer(path)
    writer.append(_rows_named(good, ["x"]))
    name = writer.flush().segment
    folder = {"root": path, "segment": path / "segments" / name, "generation": path / NAME}[place]
    change = {"layout_version": version}
    _edit(folder / "zarr.json", lambda document: document["attributes"].update(change))
    error = LayoutVersionError if place == "root" else DamagedSegment
    said = f"layout version: expected 3, got {version!r}"
    for use in (open_store, open_writer):
        with pytest.raises(error, match=re.escape(said)) as caught:
            use(path)
        named = {"root": str(path), "segment": f"segment {name}: ", "generation": NAME}[place]
        assert named in str(caught.value)
    if place == "root":
        with pytest.raises(LayoutVersionError):
            verify_store(path)
    else:
        assert said in verify_store(path).problems[0].sentence


def _v3_group(path):
    zarr.create_group(path, zarr_format=3)


def _v3_array(path):
    zarr.create_array(path, shape=(2,), dtype="f4", zarr_format=3)


def _v2_group(path):
    zarr.create_group(path, zarr_format=2)


def _v2_with_an_array(path):
    zarr.create_group(path, zarr_format=2).create_array("x", shape=(2,), dtype="f4")


FOREIGN = (_v3_group, _v3_array, _v2_group, _v2_with_an_array)


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_zarr_is_no_store(tmp_path, foreign):
    """Readers, verify and compact refuse it by name and change nothing."""
    foreign(tmp_path / "s")
    before = {one: one.read_bytes() for one in (tmp_path / "s").rglob("*") if one.is_file()}
    for use in (open_store, verify_store, lambda path: compact(LocalStorage(path))):
        with pytest.raises(NotAStore, match=f"{tmp_path / 's'}: not a store"):
            use(tmp_path / "s")
    after = {one: one.read_bytes() for one in (tmp_path / "s").rglob("*") if one.is_file()}
    assert after == before


@pytest.mark.parametrize("foreign", FOREIGN)
def test_nobody_writes_into_a_foreign_zarr(tmp_path, open_writer, foreign):
    """A worker that is given its path starts no store there."""
    foreign(tmp_path / "s")
    with pytest.raises(NotAStore):
        open_writer(tmp_path / "s")
    assert not (tmp_path / "s" / "segments").exists()


def test_the_copy_that_the_tests_damage_is_whole(path, good):
    """What these tests compare with is what a reader gets of a whole generation."""
    assert_columns(open_store(path).read(), good)
