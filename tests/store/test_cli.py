"""`halp-store`: what it prints, and how it ends."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from halp_store.cli import app
from halp_store.terminal import size
from tolerance import assert_within, relative, rounding

HOSTILE = "\x1b[31mred\nfinish reason  stop\x9b2J 赤い"


@pytest.fixture
def path(tmp_path, open_writer, make_rows):
    writer = open_writer(tmp_path / "s")
    writer.append(make_rows(["q [b]1[/b]", "b"]))
    writer.flush()
    return str(tmp_path / "s")


def _run(*arguments):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_info_says_what_a_store_holds(path):
    """For people a table, for programs JSON, with the same facts."""
    facts = json.loads(_run("info", path, "--json").stdout)
    assert (facts["rows"], facts["segments"], facts["layers"]) == (2, 1, [0, 3])
    assert (facts["generation"], facts["contradictions"], facts["hint"]) == (None, [], None)
    assert (facts["model"]["id"], facts["source_dtype"]) == ("small", "bfloat16")
    assert (facts["hidden_size"], facts["vision_hidden_size"]) == (8, 6)
    assert facts["positions"] == ["vision_token", "query_token"]
    assert facts["fingerprint"]["model"]["id"] == "small"
    assert facts["bytes_on_disk"] > 1000
    assert sum(facts["finish_reasons"].values()) == 2
    table = _run("info", path)
    assert table.exit_code == 0
    for shown in ("0, 3", "vision_token, query_token", 'model.id: "small"', " kB", "bfloat16"):
        assert shown in table.stdout
    assert "next:" not in table.stdout


def test_info_says_what_to_do(tmp_path, open_writer, publish, make_rows):
    """With no rows yet, with many segments, and with ids that were stored with two contents."""
    store = str(tmp_path / "s")
    open_writer(store)

    def hint():
        found = json.loads(_run("info", store, "--json").stdout)["hint"]
        assert (f"next: {found}\n" in _run("info", store).stdout) is bool(found)
        return found

    assert f"halp-worker run --store {store}" in hint()
    for number in range(19):
        publish(store, make_rows([f"q{number}"]))
    assert hint() is None
    publish(store, make_rows(["q19"]))
    assert hint() == f"20 segments: halp-store compact {store} makes reading one layer faster"
    for number in range(7):
        publish(store, make_rows([f"q{number}"], "b"))
    assert f"halp-store verify {store}" in hint()
    assert "contradictions      7: q0, q1, q2, q3, q4, ...\n" in _run("info", store).stdout


def test_info_knows_generations(path):
    """What was compacted, and what came after it."""
    from halp_store.compaction import compact
    from halp_store.local import LocalStorage

    done = compact(LocalStorage(path))
    facts = json.loads(_run("info", path, "--json").stdout)
    assert (facts["generation"], facts["segments"], facts["rows"]) == (done.generation, 0, 2)
    assert "0 outside the generation" in _run("info", path).stdout


@pytest.mark.parametrize(
    ("count", "shown"), [(999, "1.0 kB"), (1_500_000, "1.5 MB"), (2_340_000_000, "2.3 GB")]
)
def test_sizes_are_in_units_of_ten(count, shown):
    """As disks are sold."""
    assert size(count) == shown


def test_get_prints_one_row(path, make_rows):
    """Question, picture, truth, answer, positions, shapes and the norm of every vector."""
    features = make_rows(["q [b]1[/b]"])
    (row,) = json.loads(_run("get", path, "q [b]1[/b]", "--json").stdout)["rows"]
    assert row["image"] == features.text["image"][0]
    assert row["segment"].startswith("worker-")
    assert row["answer"] == features.text["answer"][0]
    assert row["metadata"] == {"difficulty": 3}
    assert row["arrays"]["query_token"]["shape"] == [2, 8]
    norms = np.linalg.norm(features.vectors["query_token"][0], axis=-1)
    assert_within(relative(row["arrays"]["query_token"]["norms"], norms), rounding(1, 8))
    table = _run("get", path, "q [b]1[/b]")
    assert table.exit_code == 0
    for shown in ("q [b]1[/b]", features.text["ground_truth"][0], row["image"], row["segment"]):
        assert shown in table.stdout
    assert (
        f"query_token     2 x 8  layer 0: {norms[0]:.4g}, layer 3: {norms[1]:.4g}" in table.stdout
    )


def test_get_prints_the_scores(tmp_path, open_writer, make_rows, plain):
    """NaN is null in JSON, which has none, and `none` for people; none in a store without them."""
    rows = make_rows(["a"])
    rows.scores["mean_logprob"][:], rows.scores["risk"][:] = np.nan, 0.125
    for name, some in (("new", rows), ("old", make_rows(["a"], of=plain))):
        writer = open_writer(tmp_path / name, some.layout)
        writer.append(some)
        writer.flush()
    text = _run("get", str(tmp_path / "new"), "a", "--json").stdout
    assert "NaN" not in text
    (row,) = json.loads(text)["rows"]
    assert (row["mean_logprob"], row["risk"]) == (None, 0.125)
    table = _run("get", str(tmp_path / "new"), "a").stdout
    assert re.search(r"^mean logprob +none$", table, re.MULTILINE)
    assert re.search(r"^risk +0\.125$", table, re.MULTILINE)
    (old,) = json.loads(_run("get", str(tmp_path / "old"), "a", "--json").stdout)["rows"]
    assert not set(old) & set(rows.scores)
    assert json.loads(_run("info", str(tmp_path / "new"), "--json").stdout)["scores"] == [
        "first_token_entropy",
        "mean_logprob",
        "risk",
    ]
    assert re.search(r"^scores +none$", _run("info", str(tmp_path / "old")).stdout, re.MULTILINE)


def test_get_prints_several_rows_in_the_order_asked_for(path):
    """Each once; if one is not there, all that are not are said, and nothing else."""
    found = json.loads(_run("get", path, "b", "q [b]1[/b]", "b", "--json").stdout)["rows"]
    assert [row["question_id"] for row in found] == ["b", "q [b]1[/b]"]
    shown = _run("get", path, "b", "q [b]1[/b]").stdout
    assert shown.count("question id") == 2
    result = _run("get", path, "c", "b", "d")
    assert (result.exit_code, result.stdout) == (1, "")
    assert [line.split("question id ")[1][:3] for line in result.stderr.splitlines()] == [
        "'c'",
        "'d'",
    ]


def test_get_says_where_the_picture_is(tmp_path, open_writer, make_rows):
    """Below the image root, as for a worker: what leaves it is not looked at."""
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.png").touch()
    (tmp_path / "secret").touch()
    (root / "link").symlink_to(tmp_path / "secret")
    images = ("a.png", "b.png", "../secret", "link", "https://there/x.png")
    features = make_rows([str(number) for number in range(len(images))])
    features.text["image"] = images
    writer = open_writer(tmp_path / "s")
    writer.append(features)
    writer.flush()
    store = str(tmp_path / "s")
    arguments = ["get", store, *"01234", "--image-root", str(root)]
    rows = json.loads(_run(*arguments, "--json").stdout)["rows"]
    assert [row["image_path"] for row in rows] == [str(root / "a.png"), None, None, None, None]
    assert rows[0]["image_problem"] is None
    said = ("not found: b.png", "outside the image root", "outside the image root", "a URL")
    for row, problem in zip(rows[1:], said, strict=True):
        assert row["image_problem"].startswith(problem)
    shown = _run(*arguments).stdout
    assert f"image path           {root / 'a.png'}\n" in shown
    assert f"image path           none: not found: b.png (looked under {root})\n" in shown
    assert "image_path" not in json.loads(_run("get", store, "0", "--json").stdout)["rows"][0]


def test_an_answer_cannot_steer_the_terminal(tmp_path, open_writer, make_rows):
    """Control characters are shown, a second line stands under the first; JSON escapes all."""
    features = make_rows(["a"])
    features.text["answer"] = (HOSTILE,)
    features.text["metadata"] = (json.dumps({"x\x1b[2J": HOSTILE, "n": [1]}),)
    writer = open_writer(tmp_path / "s")
    writer.append(features)
    writer.flush()
    shown = _run("get", str(tmp_path / "s"), "a").stdout
    assert shown.replace("\n", "").isprintable()
    assert "answer               \\x1b[31mred\n                     finish reason  stop" in shown
    as_json = _run("get", str(tmp_path / "s"), "a", "--json").stdout
    assert as_json.replace("\n", "").isprintable()
    (row,) = json.loads(as_json)["rows"]
    assert (row["answer"], "赤い" in as_json) == (HOSTILE, True)


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_what_is_not_there_ends_with_1_and_a_sentence(path, tmp_path, as_json):
    """No store, or no such id: on stderr, without a traceback."""
    for arguments in (["info", str(tmp_path)], ["get", path, "nope"]):
        result = _run(*arguments, *as_json)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "not a store" in result.stderr or "no row for question id 'nope'" in result.stderr


@pytest.mark.parametrize("arguments", [["get"], ["info"], ["info", ".", "--nope"], ["nope"]])
def test_a_wrong_command_line_ends_with_2(arguments):
    """Usage errors have a code of their own."""
    assert _run(*arguments).exit_code == 2


@pytest.mark.parametrize("command", ["info", "get", "ls", "query", "plot", "verify"])
def test_help_has_an_example(command):
    """So that nobody has to guess."""
    assert f"halp-store {command} run1.zarr" in _run(command, "--help").stdout


def test_without_the_extra_one_sentence_names_it(path):
    """numpy or zarr missing: the command that installs them, and exit code 1."""
    code = (
        "import sys; sys.modules['zarr'] = None; sys.argv[0] = 'halp-store'\n"
        "from halp_store.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "info", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "halp-store needs numpy and zarr: pip install 'halp-stream[store]'\n"


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import halp_store, halp_store.cli", "numpy zarr xarray matplotlib torch redis pydantic"),
        ("from halp_store import open_store, StoreWriter", "xarray torch redis pydantic"),
        ("from halp_store import Receipt", "zarr torch"),
    ],
)
def test_the_store_room_costs_only_the_store(statement, forbidden):
    """In a fresh interpreter, nothing of other rooms is loaded, and nothing before it is used."""
    code = f"{statement}; import sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    unwanted = {*forbidden.split(), "halp_worker", "halp_producer"}
    assert not unwanted & set(loaded)


def test_every_public_name_is_there():
    """`__all__` and what can be imported are the same."""
    import halp_store

    for name in halp_store.__all__:
        assert getattr(halp_store, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = halp_store.nope
