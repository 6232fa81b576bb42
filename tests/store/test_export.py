"""A store as one file of another format: what is in it, and when it is there."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors
import safetensors.numpy
import xarray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halp_store.errors import DamagedSegment
from halp_store.exchange import export_safetensors, selection
from halp_store.exchange.export import ExportError, Format, Published, export_store
from halp_store.exchange.selection import Selection, SelectionError
from halp_store.exchange.unfinished import MARK, OutputExists, unfinished
from halp_store.layout import TEXT_COLUMNS, Layout
from halp_store.reader import open_store

IDS = tuple(f"question_comb_{number}" for number in range(7))
ALL = pytest.mark.parametrize("form", list(Format))
TABLES = [Format.PARQUET, Format.ZARR, Format.NPZ]

SCRIPT = '''
"""In the manner of the published probes: a label by id, one layer of all parts, X and y."""
import sys
from pathlib import Path

import h5py
import numpy as np

folder, kind, layer = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
labels = {f"question_comb_{number}": number % 2 for number in range(7)}
rows, targets = [], []
for part in sorted(folder.glob("*.h5")):
    with h5py.File(part, "r") as f:
        for question_id in f.keys():
            if question_id not in labels:
                continue
            group = f[question_id]
            question = group["question"][()].decode("utf-8")
            image = group["image_id"][()].decode("utf-8")
            if kind in group and question.startswith("question_text") and image:
                found = group[kind]
                rows.append(found[:] if layer == "-" else found[layer][:])
                targets.append(labels[question_id])
X, y = np.stack(rows), np.array(targets)
assert X.dtype == np.float32, X.dtype
print(*X.shape, int(y.sum()), repr(float(X[0, 0])))
'''


@pytest.fixture
def path(tmp_path, open_writer, make_rows):
    """A store of two segments, in neither of which the ids are in order."""
    writer = open_writer(tmp_path / "s.zarr")
    for some in (IDS[:2:-1], IDS[2::-1]):
        writer.append(make_rows(some))
        writer.flush()
    return tmp_path / "s.zarr"


@pytest.fixture
def store(path):
    return open_store(path)


@pytest.fixture
def small_batches(monkeypatch):
    """A row at a time."""
    monkeypatch.setattr(selection, "BATCH_BYTES", 1)
    monkeypatch.setattr(selection, "_ANY_ORDER_ROWS", 1)


def _names(folder):
    return sorted(one.name for one in folder.iterdir())


def _read_back(path, form, layers=(0, 3)):
    """Columns as a store's reader gives them, with the library that the format's users have."""
    if form is Format.PARQUET:
        frame = pd.read_parquet(path)
        columns = {}
        for name in frame.columns:
            column, _, layer = name.partition("_layer_")
            values = frame[name].to_numpy()
            values = np.stack(values) if isinstance(values[0], np.ndarray) else values
            if layer:
                columns.setdefault(column, []).append(values)
            else:
                columns[column] = values
        return {
            name: np.stack(values, axis=1) if isinstance(values, list) else values
            for name, values in columns.items()
        }
    if form is Format.ZARR:
        dataset = xarray.open_zarr(path, chunks=None).load()
        if "layer" in dataset:
            assert dataset["layer"].values.tolist() == list(layers)
        return {name: dataset[name].values for name in dataset.variables if name != "layer"}
    if form is Format.NPZ:
        with np.load(path, allow_pickle=False) as arrays:
            if "layer" in arrays:
                assert arrays["layer"].tolist() == list(layers)
            return {name: arrays[name] for name in arrays.files if name not in {"layer", MARK}}
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
        assert json.loads(metadata["layers"]) == list(layers)
        texts = {name: json.loads(metadata[name]) for name in metadata if name in TEXT_COLUMNS}
        return {**texts, **{name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118


def _assert_same(got, store, columns, layers=None, ids=None):
    expected = store[list(ids or store.ids)].read(columns, layers=layers)
    assert set(got) == set(columns)
    for name, values in expected.items():
        found = got[name] if isinstance(got[name], list) else got[name].tolist()
        np.testing.assert_equal(found, values.tolist(), name)


def test_hdf5_is_exactly_the_published_layout(store, tmp_path, make_rows):
    """A group per id with these names and no others; vectors are float32, texts variable UTF-8."""
    export_store(store, tmp_path / "o.h5", Format.HDF5)
    with h5py.File(tmp_path / "o.h5") as file:
        assert tuple(file) == IDS
        for question_id in IDS:
            names = []
            file[question_id].visit(names.append)
            assert sorted(names) == [
                "answer",
                "ground_truth_answer",
                "image_id",
                "query_token_representation",
                "query_token_representation/layer_0",
                "query_token_representation/layer_3",
                "question",
                "vision_only_representation",
                "vision_token_representation",
                "vision_token_representation/layer_0",
                "vision_token_representation/layer_3",
            ]
        group, row = file[IDS[4]], make_rows([IDS[4]])
        for name, column in (
            ("question", "question_text"),
            ("image_id", "image"),
            ("ground_truth_answer", "ground_truth"),
            ("answer", "answer"),
        ):
            assert group[name][()].decode("utf-8") == row.text[column][0]
            assert h5py.check_string_dtype(group[name].dtype) == ("utf-8", None)
        vision = group["vision_only_representation"]
        assert (vision.dtype, vision.shape) == (np.float32, (6,))
        np.testing.assert_array_equal(vision[:], row.vectors["vision_encoder"][0])
        for position in ("vision_token", "query_token"):
            for number, layer in enumerate((0, 3)):
                values = group[f"{position}_representation"][f"layer_{layer}"]
                assert (values.dtype, values.shape) == (np.float32, (8,))
                np.testing.assert_array_equal(values[:], row.vectors[position][0, number])


@pytest.mark.parametrize(
    ("kind", "layer", "column", "size"),
    [
        ("query_token_representation", "layer_3", "query_token", 8),
        ("vision_token_representation", "layer_0", "vision_token", 8),
        ("vision_only_representation", "-", "vision_encoder", 6),
    ],
)
def test_a_script_for_the_published_files_runs_unchanged(
    store, tmp_path, kind, layer, column, size
):
    """It finds the file in a folder of parts, reads it as it always did, and sees our numbers."""
    (tmp_path / "parts").mkdir()
    export_store(store, tmp_path / "parts" / "embeddings_part_001.h5", Format.HDF5)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "parts", kind, layer],
        capture_output=True,
        text=True,
        check=True,
    )
    values = (
        store[[IDS[0]]].read([column])[column].reshape(-1, size)[0 if layer != "layer_3" else 1]
    )
    assert done.stdout.split() == ["7", str(size), "3", repr(float(values[0]))]


def test_hdf5_says_which_columns_its_fields_are(tmp_path, open_writer, make_rows, layout):
    """The mean before the merger and the last image token, or what was asked for, by name."""
    of = Layout(**{**vars(layout), "positions": (*layout.positions, "halp_reference")})
    writer = open_writer(tmp_path / "s", of)
    writer.append(make_rows(["a"], of=of))
    writer.flush()
    vectors = make_rows(["a"], of=of).vectors
    for asked, vision, token in (
        (Published(), "vision_encoder", "vision_token"),
        (Published("vision_only", "halp_reference"), "vision_only", "halp_reference"),
    ):
        store, out = open_store(tmp_path / "s"), tmp_path / f"{vision}.h5"
        done = export_store(store, out, Format.HDF5, published=asked)
        assert {vision, token} < set(done.columns)
        with h5py.File(out) as file:
            origin = json.loads(file.attrs[MARK])
            assert origin["sources"]["vision_only_representation"] == vision
            assert origin["sources"]["vision_token_representation"] == token
            assert origin["fingerprint"] == layout.fingerprint
            found = file["a"]["vision_only_representation"][:]
            np.testing.assert_array_equal(found, vectors[vision][0])
            found = file["a"]["vision_token_representation"]["layer_3"][:]
            np.testing.assert_array_equal(found, vectors[token][0, 1])


@pytest.mark.parametrize("bad", ["a/b", "/", ".", "", "x\0y", "./x"])
def test_an_id_that_is_no_group_name_is_refused(tmp_path, open_writer, make_rows, bad):
    """HDF5 would nest it, cut it or lose it; the id is named, and nothing is written."""
    writer = open_writer(tmp_path / "s")
    writer.append(make_rows(["good", bad]))
    writer.flush()
    with pytest.raises(ExportError) as caught:
        export_store(open_store(tmp_path / "s"), tmp_path / "o.h5", Format.HDF5)
    assert f": {bad!r}; leave them out with --ids" in str(caught.value)
    assert _names(tmp_path) == ["s"]
    chosen = Selection(ids=("good",))
    assert (
        export_store(open_store(tmp_path / "s"), tmp_path / "o.h5", Format.HDF5, chosen).rows == 1
    )


@pytest.mark.parametrize(
    ("form", "text"), [(Format.HDF5, "a\0b"), (Format.HDF5, "\0"), (Format.NPZ, "a\0")]
)
def test_a_text_that_the_format_would_cut_is_refused(tmp_path, open_writer, make_rows, form, text):
    """Every id and column is named; the file is not written."""
    rows = make_rows(["a", "b"])
    changed = {**rows.text, "answer": (text, "fine")}
    writer = open_writer(tmp_path / "s")
    writer.append(dataclasses.replace(rows, text=changed))
    writer.flush()
    with pytest.raises(ExportError, match="answer of 'a'"):
        export_store(open_store(tmp_path / "s"), tmp_path / "o", form)
    assert _names(tmp_path) == ["s"]


@pytest.mark.parametrize("form", TABLES)
def test_all_columns_come_back_as_stored(store, tmp_path, form, small_batches):
    """Texts, integers and vectors, in order of id, however many batches they were written in."""
    done = export_store(store, tmp_path / "o", form)
    assert (done.rows, done.columns, done.layers) == (7, store.columns, (0, 3))
    assert done.bytes > 7 * 4 * (8 + 6 + 2 * 2 * 8)
    _assert_same(_read_back(tmp_path / "o", form), store, store.columns)


@pytest.mark.parametrize("form", [*TABLES, Format.SAFETENSORS])
def test_what_is_selected_is_what_is_there(store, tmp_path, form):
    """Ids and layers in the order asked for, ids always, and nothing that was not named."""
    chosen = Selection((IDS[5], IDS[0], IDS[5]), ("query_token", "answer"), (3,))
    done = export_store(store, tmp_path / "o", form, chosen)
    assert (done.rows, done.layers) == (2, (3,))
    columns = ("question_id", "answer", "query_token")
    assert done.columns == columns
    _assert_same(_read_back(tmp_path / "o", form, (3,)), store, columns, (3,), (IDS[5], IDS[0]))


def test_hdf5_takes_a_selection(store, tmp_path):
    """One position, one layer, two ids: the rest of the layout is not there."""
    chosen = Selection((IDS[5], IDS[0]), ("query_token", "question_text"), (3,))
    export_store(store, tmp_path / "o.h5", Format.HDF5, chosen)
    with h5py.File(tmp_path / "o.h5") as file:
        names = []
        file.visit(names.append)
        assert [name for name in names if name.startswith(IDS[5])] == [
            IDS[5],
            f"{IDS[5]}/query_token_representation",
            f"{IDS[5]}/query_token_representation/layer_3",
            f"{IDS[5]}/question",
        ]
        assert set(file) == {IDS[0], IDS[5]}
    with pytest.raises(SelectionError, match=r"no place for image_sha256, vision_only; it takes"):
        export_store(
            store,
            tmp_path / "o2.h5",
            Format.HDF5,
            Selection(columns=("image_sha256", "vision_only")),
        )


def test_parquet_has_fixed_size_lists_and_says_where_it_is_from(store, tmp_path, small_batches):
    """A column per layer, a row group per batch, fingerprint and layers in the metadata."""
    export_store(store, tmp_path / "o.parquet", Format.PARQUET)
    file = pq.ParquetFile(tmp_path / "o.parquet")
    schema = file.schema_arrow
    assert str(schema.field("query_token_layer_3").type) == "fixed_size_list<element: float>[8]"
    assert str(schema.field("vision_encoder").type) == "fixed_size_list<element: float>[6]"
    assert str(schema.field("image_grid_thw").type) == "fixed_size_list<element: int64>[3]"
    assert str(schema.field("answer").type) == "string"
    assert file.num_row_groups == 7
    origin = json.loads(schema.metadata[MARK.encode()])
    assert origin["layers"] == [0, 3]
    assert origin["fingerprint"] == store.layout.fingerprint
    assert pq.read_table(tmp_path / "o.parquet", columns=["answer"]).num_rows == 7


def test_zarr_is_one_plain_group(store, tmp_path):
    """xarray finds the dims, the index `layer`, and the ids as a coordinate."""
    export_store(store, tmp_path / "o.zarr", Format.ZARR)
    dataset = xarray.open_zarr(tmp_path / "o.zarr", chunks=None)
    assert dict(dataset.sizes) == {
        "question": 7,
        "layer": 2,
        "hidden": 8,
        "vision_hidden": 6,
        "thw": 3,
    }
    assert set(dataset.coords) == {"question_id", "layer"}
    assert dataset["query_token"].dims == ("question", "layer", "hidden")
    assert dataset.attrs[MARK]["fingerprint"] == store.layout.fingerprint
    assert dataset["query_token"].sel(layer=3).shape == (7, 8)


def test_safetensors_are_numbers_with_ids_in_the_metadata(store, tmp_path, monkeypatch):
    """Read by the library; texts come along when they are named, as far as the format has room."""
    export_store(store, tmp_path / "o", Format.SAFETENSORS)
    tensors = safetensors.numpy.load_file(tmp_path / "o")
    _assert_same(tensors, store, {*store.layout.number_columns()})
    with safetensors.safe_open(tmp_path / "o", "numpy") as file:
        assert json.loads(file.metadata()["question_id"]) == list(IDS)
        assert "answer" not in file.metadata()
        origin = json.loads(file.metadata()[MARK])
        assert origin["fingerprint"] == store.layout.fingerprint
    monkeypatch.setattr(export_safetensors, "_MOST_HEADER_BYTES", 500)
    with pytest.raises(ExportError, match="leave texts out of --columns"):
        export_store(store, tmp_path / "p", Format.SAFETENSORS, Selection(columns=("answer",)))


def test_everything_that_a_store_does_not_have_is_said_at_once(store, tmp_path):
    """Columns, layers and ids, with what there is, and how many ids."""
    unknown = tuple(f"nope{number}" for number in range(9))
    chosen = Selection((*unknown, IDS[0]), ("nope", "answer"), (3, 99))
    with pytest.raises(SelectionError) as caught:
        export_store(store, tmp_path / "o", Format.NPZ, chosen)
    column, layer, ids = str(caught.value).splitlines()
    assert "no column 'nope'; there are question_id, question_text" in column
    assert layer.endswith("no layer 99; there are 0, 3")
    assert "no row for 9 of 10 ids: 'nope0', 'nope1'" in ids
    assert ids.endswith("and 4 more")
    with pytest.raises(SelectionError, match="there are no rows to take"):
        export_store(store, tmp_path / "o", Format.NPZ, Selection(ids=()))


@ALL
def test_what_is_there_stays_unless_force_is_given(store, tmp_path, form):
    """And with force it is the new one."""
    out = tmp_path / "o"
    export_store(store, out, form, Selection(ids=IDS[:1]))
    with pytest.raises(OutputExists, match="exists; --force replaces it"):
        export_store(store, out, form)
    assert export_store(store, out, form, force=True).rows == 7
    assert _names(tmp_path) == ["o", "s.zarr"]


@ALL
def test_a_folder_of_something_else_is_never_replaced(store, path, tmp_path, form):
    """Not a store, not a home directory, whatever --force says; nor a file where a folder goes."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("years of work")
    for out in (tmp_path / "home", path):
        with pytest.raises(OutputExists, match="not one that an export wrote"):
            export_store(store, out, form, force=True)
    for out in (path / "o", path / "segments" / "o"):
        with pytest.raises(ExportError, match="inside the store"):
            export_store(store, out, form)
    with pytest.raises(OutputExists, match="there is no folder"):
        export_store(store, tmp_path / "nope" / "o", form)
    if form is Format.ZARR:
        with pytest.raises(OutputExists, match="use another path"):
            export_store(store, tmp_path / "home" / "thesis", form, force=True)
        (tmp_path / "empty").mkdir()
        assert export_store(store, tmp_path / "empty", form).rows == 7
    assert (tmp_path / "home" / "thesis").read_text() == "years of work"
    assert len(open_store(path)) == 7


@ALL
def test_a_killed_export_leaves_nothing_under_its_name(store, tmp_path, form, fork, small_batches):
    """SIGKILL in the middle: the next run removes what is left, and is whole."""
    out = tmp_path / "o"

    def die(done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    child = fork(lambda: export_store(store, out, form, progress=die))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    left = [name for name in _names(tmp_path) if name != "s.zarr"]
    assert [name.startswith("o.partial-") for name in left] == [True]
    assert export_store(store, out, form).rows == 7
    assert _names(tmp_path) == ["o", "s.zarr"]


def test_two_exports_to_one_name_do_not_touch_each_other(tmp_path):
    """What another one is writing is not removed; the name goes to the first that is whole."""
    out = tmp_path / "o"

    def write_slowly():
        with unfinished(out, is_folder=False, force=False) as slow:
            slow.write_text("half")
            with unfinished(out, is_folder=False, force=False) as fast:
                fast.write_text("whole")
            assert slow.read_text() == "half"

    with pytest.raises(OutputExists):
        write_slowly()
    assert out.read_text() == "whole"
    assert _names(tmp_path) == ["o"]


@ALL
def test_damage_is_an_error_and_no_file(store, path, tmp_path, form):
    """A chunk that is missing never becomes numbers."""
    next(path.glob("segments/*/query_token/c.0.1.0")).unlink()
    with pytest.raises(DamagedSegment, match="query_token"):
        export_store(store, tmp_path / "o", form)
    assert _names(tmp_path) == ["s.zarr"]


TEXT = st.text(st.characters(exclude_categories=("Cs",))) | st.sampled_from(
    ["", "\0", "a\0b", "\0a", "\N{WATERMELON}\u200d", "\r\n\t", "x" * 70_000, "'\"\\", "é" * 300]
)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(TEXT, min_size=1, max_size=3, unique=True))
def test_any_text_comes_back_or_is_refused(tmp_path_factory, open_writer, make_rows, texts):
    """As id and as answer, in every format: never another text in its place."""
    folder = tmp_path_factory.mktemp("any")
    rows = make_rows(texts)
    writer = open_writer(folder / "s")
    writer.append(dataclasses.replace(rows, text={**rows.text, "answer": tuple(texts)}))
    writer.flush()
    store, columns = open_store(folder / "s"), ("question_id", "answer")
    for form in (*TABLES, Format.SAFETENSORS):
        try:
            export_store(store, folder / form, form, Selection(columns=columns))
        except ExportError:
            assert form is Format.NPZ
            assert any(text.endswith("\0") for text in texts)
        else:
            _assert_same(_read_back(folder / form, form), store, columns)
    try:
        export_store(store, folder / "hdf5", Format.HDF5)
    except ExportError:
        assert any(text in {"", "."} or {"\0", "/"} & set(text) for text in texts)
    else:
        with h5py.File(folder / "hdf5") as file:
            assert {name: file[name]["answer"][()].decode() for name in file} == dict(
                zip(texts, texts, strict=True)
            )
