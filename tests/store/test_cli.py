"""`halp-store`: what it prints, and how it ends."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from halp_store.cli import app


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
    assert facts["positions"] == ["vision_token", "query_token"]
    assert facts["fingerprint"]["model"]["id"] == "small"
    assert facts["bytes_on_disk"] > 1000
    assert sum(facts["finish_reasons"].values()) == 2
    table = _run("info", path)
    assert table.exit_code == 0
    for shown in ("0, 3", "vision_token, query_token", 'model.id: "small"', " MB"):
        assert shown in table.stdout


def test_get_prints_one_row(path, make_rows):
    """Question, truth, answer, positions, shapes and the norm of every vector."""
    features = make_rows(["q [b]1[/b]"])
    row = json.loads(_run("get", path, "q [b]1[/b]", "--json").stdout)
    assert row["answer"] == features.text["answer"][0]
    assert row["metadata"] == {"difficulty": 3}
    assert row["arrays"]["query_token"]["shape"] == [2, 8]
    norms = np.linalg.norm(features.vectors["query_token"][0], axis=-1)
    np.testing.assert_allclose(row["arrays"]["query_token"]["norms"], norms, rtol=1e-6)
    table = _run("get", path, "q [b]1[/b]")
    assert table.exit_code == 0
    for shown in ("q [b]1[/b]", features.text["ground_truth"][0], "(2, 8)", f"{norms[1]:.4g}"):
        assert shown in table.stdout


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


@pytest.mark.parametrize("command", ["info", "get"])
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
        ("import halp_store, halp_store.cli", "numpy zarr xarray torch redis pydantic"),
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
