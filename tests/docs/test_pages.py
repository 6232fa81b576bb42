"""The pages' examples run as they are written, from top to bottom, and give what they promise."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from typer.testing import CliRunner

from halp_store.cli import app
from halp_store.compaction import compact
from halp_store.delete import delete_rows
from halp_store.features import FeatureBatch
from halp_store.fence import fence_segment
from halp_store.layout import SCORE_COLUMNS, TEXT_COLUMNS, Layout
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.writer import StoreWriter
from tolerance import assert_within, relative, rounding

DOCS = Path(__file__).parents[2] / "docs"
LAYOUT = Layout(
    layers=(0, 7, 14, 21, 27),
    positions=("vision_token", "query_token"),
    hidden_size=16,
    vision_hidden_size=12,
    source_dtype="float32",
    fingerprint={"model": {"id": "example"}},
    scores=SCORE_COLUMNS,
)


def make_rows(numbers):
    """Questions with answers that are often wrong, and states that know it."""
    random = np.random.default_rng([numbers[0], 7])
    count = len(numbers)
    wrong = random.random(count) < 0.3
    text = dict.fromkeys(TEXT_COLUMNS, ("",) * count) | {
        "question_id": tuple(f"question_comb_{number}" for number in numbers),
        "question_text": ("Is there a kettle?",) * count,
        "image": tuple(f"kitchen/{number // 2}.jpg" for number in numbers),
        "ground_truth": ("No",) * count,
        "answer": tuple("Yes." if one else "No." for one in wrong),
        "finish_reason": ("stop",) * count,
        "metadata": ("{}",) * count,
        "content_hash": tuple(f"hash {number}" for number in numbers),
    }
    integers = {
        name: random.integers(1, 9, (count, *shape))
        for name, (_, shape) in LAYOUT.integer_columns().items()
    }
    vectors = {
        name: random.standard_normal((count, *shape), dtype=np.float32)
        for name, (_, shape) in LAYOUT.vector_columns().items()
    }
    vectors["query_token"][wrong] += 1
    scores = {name: random.random(count, dtype=np.float32) for name in LAYOUT.scores}
    scores["mean_logprob"][:] = -scores["mean_logprob"]
    scores["mean_logprob"][::5] = np.nan  # nothing was generated
    return FeatureBatch(LAYOUT, text, integers, vectors, scores)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """`run1.zarr` in the current folder: 300 questions on 150 images, in segments of 20."""
    monkeypatch.chdir(tmp_path)
    writer = StoreWriter.open("run1.zarr", LAYOUT, worker="example", provenance={})
    for start in range(0, 300, 20):
        writer.append(make_rows(range(start, start + 20)))
        writer.flush()
    return LocalStorage("run1.zarr")


def examples(page):
    blocks = re.findall(
        r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL
    )
    assert blocks, f"no examples in {page}"
    return blocks


def run(page, names=None):
    """What the names are after the last example."""
    names = {} if names is None else names
    for number, block in enumerate(examples(page), 1):
        exec(compile(block, f"{page}, example {number}", "exec"), names)  # noqa: S102
    return names


@pytest.mark.slow
def test_the_notebook_page_runs(store):
    """xarray, pandas, scikit-learn, torch, on a compacted store; the probe finds what is there."""
    compact(store)
    names = run("notebooks.md")
    assert names["both"]["query_token"].shape == (2, 2, 16)
    assert names["norms"].shape == (300, 5)
    expected = names["dataset"]["query_token"].mean("question")
    assert_within(relative(names["mean"], expected), rounding(1, 300))
    assert 0.1 < names["wrong"].mean() < 0.5
    assert names["auroc"] > 0.9
    assert names["inputs"].shape == (300 % 64, 16)
    assert set(LAYOUT.scores) < set(names["table"].columns)
    assert names["baseline"] < names["auroc"]


@pytest.mark.parametrize("compacted", [0, 1, 2])
def test_the_format_page_reads_a_store_without_us(store, compacted):
    """zarr alone, as the page says, finds what `open_store` finds: segments, generations, both."""
    _add_what_is_no_row(store)
    delete_rows(store, open_store("run1.zarr").ids[:2])
    for round_ in range(compacted):
        compact(store)
        writer = StoreWriter.open("run1.zarr", LAYOUT, worker=f"a{round_}", provenance={})
        writer.append(make_rows(range(1000 + round_, 1004)))
        writer.flush()
    if not compacted:  # the page's last example is about a generation
        Path("run1.zarr/compacted").mkdir()
        names = {}
        exec(examples("store-format.md")[0], names)  # noqa: S102
    else:
        names = run("store-format.md")
    delete_rows(store, open_store("run1.zarr").ids[5:9:3])
    expected = open_store("run1.zarr")
    read = names["read"]
    for column in ("query_token", "answer", "image_grid_thw", "vision_encoder", "mean_logprob"):
        ids, values = read("run1.zarr", column)
        assert tuple(ids) == expected.ids
        np.testing.assert_array_equal(values, expected.read([column])[column])
    if compacted:
        dataset = xarray.open_zarr(f"run1.zarr/{expected.generation}", chunks=None)
        last = dataset["query_token"].isel(layer=-1).to_numpy()
        np.testing.assert_array_equal(names["last_layer"], last)


def _add_what_is_no_row(store):
    """A tombstone, a segment that is being written, one of a disk without hard links; of those a
    deletion, too."""
    store.write("deleted/" + "0" * 32 + ".json", b"")
    fence_segment(store, "dead-" + "0" * 32)
    store.write("segments/busy-" + "0" * 32 + "/answer/c.0", b"half")
    store.write("segments/late-" + "0" * 32 + "/zarr.json", b"")


def test_tensorstore_reads_what_we_read(store):
    """Every number of a segment and of a generation, shards and checksums included."""
    compact(store)
    expected = open_store("run1.zarr")
    numbers = expected.read(list(LAYOUT.number_columns()))
    for name, values in numbers.items():
        array = tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"run1.zarr/{expected.generation}/{name}/"},
            }
        ).result()
        assert array.domain.labels[0] == "question"
        np.testing.assert_array_equal(array.read().result(), values)
    segment = sorted(Path("run1.zarr/segments").iterdir())[0]
    array = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{segment}/query_token/"}}
    ).result()
    np.testing.assert_array_equal(
        array.read().result(), zarr.open_group(segment, mode="r")["query_token"][...]
    )


def test_the_exports_page_reads_what_was_exported(store):
    """Parquet, Zarr, safetensors and npz, with the lines that the page shows."""
    compact(store)
    for out, form in (
        *(("run1.parquet", "parquet"), ("out.zarr", "zarr")),
        *(("run1.safetensors", "safetensors"), ("run1.npz", "npz")),
    ):
        ended = CliRunner().invoke(app, ["export", "run1.zarr", out, "--format", form])
        assert ended.exit_code == 0, ended.output
    names = run("exports.md")
    ids, expected = open_store("run1.zarr").array("query_token", layer=21)
    np.testing.assert_array_equal(names["X"], expected)
    np.testing.assert_array_equal(names["states"], expected)
    assert tuple(names["ids"]) == ids
    assert tuple(names["answers"]) == open_store("run1.zarr").text("answer")
