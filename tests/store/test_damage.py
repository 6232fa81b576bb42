"""Damage is loud: the segment and the array are named, and nothing is made up."""

import json

import pytest

from halp_store.errors import DamagedSegment
from halp_store.reader import open_store

from .conftest import HARMS

READS = {
    "array": lambda store, name: store.array(name),
    "row": lambda store, name: store["a"],
    "records": lambda store, name: list(store.records()),
    "batches": lambda store, name: list(store.iter_batches([name])),
    "mixed batches": lambda store, name: list(store.iter_batches([name], shuffle_seed=1)),
    "xarray": lambda store, name: store.to_xarray()[name].values,
}


@pytest.fixture
def segment(tmp_path, open_writer, make_rows):
    writer = open_writer(tmp_path / "s")
    writer.append(make_rows(["a", "b"]))
    return tmp_path / "s" / "segments" / writer.flush().segment


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("chunk", ["query_token/c.0.1.0", "vision_only/c.0.0"])
def test_a_harmed_chunk_is_an_error_that_names_it(segment, harm, read, chunk):
    """Missing, torn, empty or with a flipped bit: never a fill value, never other numbers."""
    harm(segment / chunk)
    name = chunk.partition("/")[0]
    with pytest.raises(DamagedSegment) as caught:
        read(open_store(segment.parent.parent), name)
    assert (caught.value.segment, caught.value.array) == (segment.name, name)
    assert f"segment {segment.name}: array {name}: " in str(caught.value)
    assert "restore" in str(caught.value)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("column", ["answer", "prompt_tokens", "risk"])
def test_harmed_texts_integers_and_scores_are_errors_too(segment, harm, column):
    """Every column has a checksum, not only the vectors."""
    harm(next((segment / column).glob("c.*")))
    store = open_store(segment.parent.parent)
    with pytest.raises(DamagedSegment, match=f"array {column}: "):
        store.read([column])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b'{"zarr_format": 3, "node', "Unterminated|Expecting"),
        (b"[]", "expected the metadata of a Zarr group"),
        (b'{"attributes": {"layout_version": 7}}', "layout version: expected 3, got 7"),
        (b'{"attributes": {"layout_version": 1}}', "expected attributes nonce, question_ids"),
        (b"\xff\xfe\xfd", "decode"),
    ],
)
def test_a_foreign_zarr_json_among_the_segments_is_named(segment, open_writer, document, message):
    """Readers and writers both refuse to go on over a segment that they cannot understand."""
    (segment / "zarr.json").write_bytes(document)
    with pytest.raises(DamagedSegment, match=f"{segment.name}: its zarr.json: .*({message})"):
        open_store(segment.parent.parent)
    with pytest.raises(DamagedSegment, match=segment.name):
        open_writer(segment.parent.parent)


def test_ids_that_were_changed_behind_the_checksums_are_noticed(segment):
    """zarr.json has no checksum of its own: a row is compared with the columns that have one."""
    document = json.loads((segment / "zarr.json").read_bytes())
    document["attributes"]["question_ids"] = ["x", "b"]
    (segment / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(DamagedSegment, match=r"expected 'x' as in zarr\.json, got RowKey"):
        open_store(segment.parent.parent)["x"]


def test_metadata_of_another_shape_is_noticed(segment):
    """An array whose metadata does not fit the store's layout is refused before it is read."""
    text = (segment / "zarr.json").read_text()
    for old, new in (('"shape": [2, 8]', '"shape": [2, 9]'), ('"consolidated_metadata"', '"gone"')):
        assert old in text
        (segment / "zarr.json").write_text(text.replace(old, new))
        with pytest.raises(DamagedSegment, match=r"expected (shape|chunks|consolidated)"):
            open_store(segment.parent.parent).array("vision_only")


def test_an_unpublished_segment_is_no_damage(segment):
    """Staged chunks without a zarr.json are an orphan: not there for readers, not an error."""
    (segment / "zarr.json").unlink()
    assert len(open_store(segment.parent.parent)) == 0
    (segment / "zarr.json").touch()
    assert len(open_store(segment.parent.parent)) == 0
