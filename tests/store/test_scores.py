"""Score columns from end to end, and stores without them: layout version 1, as it always was."""

import dataclasses
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from halp_store.cli import app
from halp_store.compaction import compact
from halp_store.errors import DamagedSegment, ForeignSegment
from halp_store.exchange.export import Format, export_store
from halp_store.exchange.selection import Selection, SelectionError
from halp_store.features import RowKey
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.query import FilterError, Query
from halp_store.reader import open_store
from halp_store.verification import ProblemKind
from halp_store.verify import verify_store

IDS = [f"q{number}" for number in range(9)]
STAGES = ("segments", "compacted", "pruned", "written on")


@pytest.fixture(params=["with scores", "without scores"])
def of(request, layout, plain):
    return layout if request.param == "with scores" else plain


@pytest.fixture(params=STAGES)
def path(request, tmp_path, of, open_writer, make_rows):
    """A store of all rows at each stage of its life."""
    stage = STAGES.index(request.param)
    where = tmp_path / "s"
    writer = open_writer(where, of)
    for some in (IDS[::2], IDS[1::2]):
        writer.append(make_rows(some, of=of))
        writer.flush()
        if stage == STAGES.index("written on") and some[0] == IDS[0]:
            compact(LocalStorage(where))
    if request.param in ("compacted", "pruned"):
        compact(LocalStorage(where))
    if request.param == "pruned":
        prune(LocalStorage(where), grace_seconds=0)
    return where


def _attributes(document):
    return json.loads(document.read_bytes())["attributes"]


def test_a_store_is_of_one_version_as_a_whole(path, of):
    """Root, segments and generations carry one stamp; without scores nothing is said of them."""
    documents = [path / "zarr.json", *path.glob("segments/*/zarr.json")]
    documents += path.glob("compacted/[0-9]*/zarr.json")
    found = [_attributes(one) for one in documents]
    found = [one for one in found if not one.get("tombstone")]
    stamps = {
        tuple(attributes[name] for name in ("layout_version", "store_id", "fingerprint_digest"))
        for attributes in found
    }
    assert len(stamps) == 1
    assert stamps.pop()[0] == 3
    assert ("scores" in found[0]) is bool(of.scores)
    arrays = {one.parent.name for one in path.glob("*/*/*/zarr.json")}
    assert {name for name in arrays if name in {"risk", "mean_logprob", "first_token_entropy"}} == {
        *of.scores
    }
    assert verify_store(path).ok


def test_scores_come_back_bit_for_bit_by_every_way_of_reading(path, of, make_rows):
    """By column, row, batch, table and Dataset; a NaN stays one. Without them there are none."""
    expected, store = make_rows(IDS, of=of), open_store(path)
    assert set(store.layout.scores) == set(expected.scores) == set(of.scores)
    records = list(store.records())
    assert [dict(one.scores).keys() for one in records] == [expected.scores.keys()] * len(IDS)
    table, dataset = store.to_dataframe(), store.to_xarray()
    batches = list(store.iter_batches(batch_rows=2, shuffle_seed=3))
    for name, values in expected.scores.items():
        by_id = dict(zip(IDS, values, strict=True))
        found = [
            store.scores(name),
            store.read([name])[name],
            table[name].to_numpy(),
            dataset[name].values,
            store[::2].scores(name),
        ]
        for one in found[:-1]:
            assert (one.dtype, one.tobytes()) == (np.float32, values.tobytes())
        assert found[-1].tobytes() == values[::2].tobytes()
        rows = np.array([one.scores[name] for one in records], np.float32)
        assert rows.tobytes() == values.tobytes()
        mixed = [
            (one, score)
            for batch in batches
            for one, score in zip(batch["question_id"], batch[name], strict=True)
        ]
        assert len(mixed) == len(IDS)
        np.testing.assert_array_equal(
            [score for _, score in mixed], [by_id[one] for one, _ in mixed]
        )
    assert any(np.isnan(values).any() for values in expected.scores.values()) is bool(of.scores)
    if not of.scores:
        with pytest.raises(ValueError, match="no score column 'risk'; there are none"):
            store.scores("risk")
        with pytest.raises(FilterError, match="no column 'risk'"):
            Query.parse(store.layout, ["risk>0.5"])


@pytest.mark.slow  # imports torch
@pytest.mark.parametrize("in_memory", [True, False])
def test_torch_gets_scores_as_float32(tmp_path, open_writer, make_rows, in_memory):
    """Scalars of a row, NaN where there is none."""
    torch = pytest.importorskip("torch")
    rows = make_rows(IDS)
    writer = open_writer(tmp_path)
    writer.append(rows)
    writer.flush()
    items = open_store(tmp_path).as_torch_dataset(["risk", "mean_logprob"], in_memory=in_memory)
    for name in ("risk", "mean_logprob"):
        found = torch.stack([item[name] for item in items.__getitems__(range(len(IDS)))])
        assert found.dtype == torch.float32
        assert found.numpy().tobytes() == rows.scores[name].tobytes()


def test_a_receipt_tells_reason_and_risk_of_rows_wherever_they_are(
    path, of, open_writer, make_rows
):
    """Stored before by another writer: in segments, a generation, and where segments are gone."""
    rows = make_rows(IDS, of=of)
    risks = rows.scores.get("risk", [None] * len(IDS))
    late = open_writer(path, of, worker="late")
    late.append(rows)
    for receipt in (
        late.receipt_for([RowKey(one, f"a-{one}") for one in IDS]),
        late.flush().receipt,
    ):
        stored = {one.key.question_id: one for one in receipt.stored}
        for number, one in enumerate(IDS):
            assert stored[one].answer == rows.text["answer"][number]
            assert stored[one].finish_reason == rows.text["finish_reason"][number]
            assert stored[one].risk == risks[number]


def test_a_score_that_is_not_there_meets_not_equal_alone(tmp_path, open_writer, make_rows):
    """Negative numbers compare too, by size."""
    rows = make_rows(["a", "b", "c"])
    rows.scores["mean_logprob"][:] = [-0.5, np.nan, -1.5]
    writer = open_writer(tmp_path)
    writer.append(rows)
    writer.flush()
    store = open_store(tmp_path)
    for condition, ids in (
        ("mean_logprob<-1", "c"),
        ("mean_logprob>-1", "a"),
        ("mean_logprob<=0", "ac"),
        ("mean_logprob=-1.5", "c"),
        ("mean_logprob!=-1.5", "ab"),
    ):
        assert "".join(Query.parse(store.layout, [condition]).ids(store)) == ids, condition
        run = CliRunner().invoke(app, ["query", str(tmp_path), condition, "--ids"])
        assert "".join(run.stdout.split()) == ids


def test_hdf5_has_no_place_for_scores(path, of, tmp_path):
    """The published layout is what scripts expect: asked for, they are refused by name."""
    store = open_store(path)
    done = export_store(store, tmp_path / "o.h5", Format.HDF5)
    assert not {*of.scores} & {*done.columns}
    wanted = Selection(columns=("query_token", "risk"))
    said = "hdf5: the published layout has no place for risk" if of.scores else "no column .risk."
    with pytest.raises(SelectionError, match=said):
        export_store(store, tmp_path / "p.h5", Format.HDF5, wanted)


@pytest.mark.parametrize("is_older", [True, False])
def test_a_segment_of_another_version_is_damage_and_never_a_made_up_score(
    tmp_path, open_writer, publish, make_rows, layout, plain, is_older
):
    """Without the store's scores they cannot be read, or compacted; the rest can. What the store
    has no column for is not shown, and verify names the segment either way."""
    ours, theirs = (layout, plain) if is_older else (plain, layout)
    writer = open_writer(tmp_path, ours)
    writer.append(make_rows(["a"], of=ours))
    writer.flush()
    name = publish(tmp_path, make_rows(["b"], of=theirs))
    store = open_store(tmp_path)
    assert store.text("answer") == make_rows(["a", "b"]).text["answer"]
    if is_older:
        with pytest.raises(DamagedSegment, match=f"segment {name}: array risk: ") as caught:
            store.scores("risk")
        assert caught.value.array == "risk"
        with pytest.raises(DamagedSegment, match=name):
            compact(LocalStorage(tmp_path))
    else:
        assert not {*layout.scores} & {*store.read()}
    problems = verify_store(tmp_path).problems
    assert {(one.kind, one.segment) for one in problems} == {(ProblemKind.DAMAGED, name)}


@pytest.mark.parametrize("is_older", [True, False])
def test_a_generation_of_another_store_than_the_root_is_found(
    tmp_path, open_writer, make_rows, layout, plain, is_older
):
    """Somebody has put another root over it."""
    ours, theirs = (plain, layout) if is_older else (layout, plain)
    writer = open_writer(tmp_path / "s", ours)
    writer.append(make_rows(["a"], of=ours))
    writer.flush()
    compact(LocalStorage(tmp_path / "s"))
    prune(LocalStorage(tmp_path / "s"), grace_seconds=0)
    open_writer(tmp_path / "other", theirs)
    (tmp_path / "s" / "zarr.json").write_bytes((tmp_path / "other" / "zarr.json").read_bytes())
    found = verify_store(tmp_path / "s").problems
    assert [(one.kind, one.segment) for one in found] == [(ProblemKind.FOREIGN, "compacted/000001")]
    with pytest.raises(ForeignSegment, match="store_id"):
        open_store(tmp_path / "s")


def test_nothing_but_score_columns_is_between_stores_with_scores_and_without(
    tmp_path, open_writer, make_rows, layout, plain
):
    """The same rows with and without scores: each other file of a segment has the same bytes."""
    segments = {}
    for of in (layout, plain):
        path = tmp_path / str(bool(of.scores))
        writer = open_writer(path, of)
        rows = make_rows(["a", "b"])
        writer.append(dataclasses.replace(rows, layout=of, scores=rows.scores if of.scores else {}))
        folder = path / "segments" / writer.flush().segment
        segments[bool(of.scores)] = {
            str(one.relative_to(folder)): one.read_bytes()
            for one in folder.rglob("*")
            if one.is_file() and one.parent != folder
        }
    more = {name for name in segments[True] if name.partition("/")[0] in layout.scores}
    assert {name: segments[True][name] for name in segments[True].keys() - more} == segments[False]
    assert len(more) == 2 * len(layout.scores)


def test_ls_of_a_store_without_scores_says_what_there_is(tmp_path, open_writer, plain):
    """A score is a column that is not there, and the command line is wrong."""
    open_writer(tmp_path, plain)
    run = CliRunner().invoke(
        app, ["ls", str(tmp_path), "--columns", "risk"], env={"COLUMNS": "300"}
    )
    assert run.exit_code == 2
    assert "no column 'risk'; there are question_id" in " ".join(
        run.stderr.replace("│", " ").split()
    )
