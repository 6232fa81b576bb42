"""`halp-store export` and `halp-store import`: what they print, and how they end."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from halp_store import cli_export
from halp_store.exchange.export import Format
from halp_store.reader import open_store

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
app.command(epilog=cli_export.EXPORT_EXAMPLES)(cli_export.export)
app.command("import", epilog=cli_export.IMPORT_EXAMPLES)(cli_export.import_)


@pytest.fixture
def path(tmp_path, open_writer, make_rows):
    writer = open_writer(tmp_path / "s")
    writer.append(make_rows(["q1", "q2", "q3"]))
    writer.flush()
    return str(tmp_path / "s")


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out.file")


def _run(*arguments):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_the_formats_of_both_rooms_are_the_same():
    """The command's and the function's."""
    assert {one.name: one.value for one in cli_export.FormatName} == {
        one.name: one.value for one in Format
    }


@pytest.mark.parametrize("form", list(Format))
def test_export_says_what_it_wrote(path, out, form):
    """For people a line, for programs JSON, with the same facts."""
    result = _run("export", path, out, "--format", form)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{out}: 3 rows of ")
    assert "layers 0, 3, " in result.stdout
    facts = json.loads(_run("export", path, out, "--format", form, "--force", "--json").stdout)
    assert list(facts) == ["path", "format", "rows", "columns", "layers", "bytes"]
    assert (facts["path"], facts["format"], facts["rows"]) == (out, form, 3)
    assert facts["layers"] == [0, 3]
    assert facts["bytes"] > 500


def test_an_export_that_will_be_slow_says_what_helps(path, out, monkeypatch):
    """In order of id, each batch reads nearly all segments; HDF5 alone has no order to keep."""
    monkeypatch.setattr(cli_export, "_MANY_SEGMENTS", 0)
    said = f"slow until it is compacted: halp-store compact {path}\n"
    assert _run("export", path, out, "--format", "npz").stderr == said
    assert _run("export", path, out, "--format", "hdf5", "--force").stderr == ""


def test_a_selection_is_given_by_names_numbers_and_a_file(path, out, tmp_path):
    """Ids one per line, as an editor of any system writes them."""
    (tmp_path / "ids").write_bytes("\ufeffq3\r\n\r\nq1\r\n".encode())
    options = ["--layers", "3", "--columns", "query_token, answer", "--ids", str(tmp_path / "ids")]
    result = _run("export", path, out, "--format", "npz", *options)
    assert result.exit_code == 0, result.output
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["question_id"].tolist() == ["q3", "q1"]
        expected = open_store(path)[["q3", "q1"]].array("query_token", layer=3)[1]
        np.testing.assert_array_equal(arrays["query_token"][:, 0], expected)
        assert "vision_only" not in arrays.files


def test_what_is_not_there_ends_with_1_and_says_what_is(path, out, tmp_path):
    """No store, column, layer or id, a file in the way: on stderr, without a traceback."""
    (tmp_path / "ids").write_text("q1\nnope\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "taken").write_text("mine")
    npz = ["--format", "npz"]
    for arguments, said in (
        ([str(tmp_path / "empty"), out, *npz], "not a store"),
        ([path, out, *npz, "--columns", "nope"], "no column 'nope'; there are question_id,"),
        ([path, out, *npz, "--layers", "0,9"], "no layer 9; there are 0, 3"),
        ([path, out, *npz, "--ids", str(tmp_path / "ids")], "no row for 1 of 2 ids: 'nope'"),
        ([path, out, *npz, "--ids", str(tmp_path / "binary")], "expected question ids as UTF-8"),
        ([path, str(tmp_path / "taken"), *npz], "exists; --force replaces it"),
        ([path, str(tmp_path / "a" / "b"), *npz], "there is no folder"),
        ([path, out, "--format", "hdf5", "--columns", "metadata"], "no place for metadata"),
    ):
        result = _run("export", *arguments, "--json")
        assert (result.exit_code, result.stdout) == (1, ""), arguments
        assert said in result.stderr, result.stderr
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--format", "pickle"],
        ["--format", "npz", "--layers", "last"],
        ["--format", "npz", "--layers", ""],
        ["--format", "npz", "--columns", "answer,,image"],
        ["--format", "npz", "--vision", "vision_only"],
        ["--format", "hdf5", "--vision", "vision_token"],
        ["--format", "npz", "--ids", "nowhere.txt"],
    ],
)
def test_a_wrong_command_line_ends_with_2(path, out, options):
    """Usage errors have a code of their own."""
    assert _run("export", path, out, *options).exit_code == 2


def test_import_reads_what_export_wrote(path, tmp_path):
    """A line and JSON; the second time everything is there already."""
    part, store = str(tmp_path / "part.h5"), str(tmp_path / "old")
    assert _run("export", path, part, "--format", "hdf5", "--vision", "vision_only").exit_code == 0
    result = _run("import", store, part)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{store}: 3 rows stored, 0 were there already\n"
    assert "vision_only" in open_store(store).columns
    facts = json.loads(_run("import", store, part, "--json").stdout)
    assert facts == {"store": store, "stored": 0, "present": 3, "problems": [], "left_out": {}}


def test_import_lists_bad_groups_and_ends_with_1(path, tmp_path):
    """The good ones are stored; the list is bounded, JSON has all."""
    part, store = str(tmp_path / "part.h5"), str(tmp_path / "old")
    assert _run("export", path, part, "--format", "hdf5").exit_code == 0
    with h5py.File(part, "r+") as file:
        for number in range(60):
            file.create_group(f"bad{number:02}")
        file["q1"]["log\x1b[2Jits"] = np.zeros(4)
    result = _run("import", store, part)
    assert result.exit_code == 1
    first, left_out, count, problem = result.stdout.splitlines()[:4]
    assert first == f"{store}: 3 rows stored, 0 were there already"
    assert left_out == "not stored, because the layout does not have it: log\\x1b[2Jits of 1 groups"
    assert (count, problem[:30]) == ("problems: 60", f"  {part}: group 'bad00': has no"[:30])
    assert result.stdout.endswith("  and 10 more; --json prints all\n")
    result = _run("import", store, part, "--json")
    assert result.exit_code == 1
    problems = json.loads(result.stdout)["problems"]
    assert len(problems) == 60
    assert (problems[0]["file"], problems[0]["group"]) == (part, "bad00")


def test_import_into_a_workers_store_ends_with_1(path, tmp_path):
    """A sentence, and the store is as it was."""
    part = str(tmp_path / "part.h5")
    _run("export", path, part, "--format", "hdf5")
    result = _run("import", path, part)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not a store of imported rows" in result.stderr
    assert len(open_store(path)) == 3


@pytest.mark.parametrize(("command", "words"), [("export", "run1.h5"), ("import", "_part_*.h5")])
def test_help_has_examples(command, words):
    """So that nobody has to guess."""
    help_text = _run(command, "--help").stdout
    assert f"halp-store {command} " in help_text
    assert words in help_text


@pytest.mark.parametrize(
    ("lacking", "form"), [("h5py", "hdf5"), ("pyarrow", "parquet"), ("numpy", "npz")]
)
def test_without_the_extra_one_sentence_names_it(path, out, tmp_path, lacking, form):
    """Which library, the command that installs it, and exit code 1; nothing is left behind."""
    code = (
        f"import sys, typer; sys.modules[{lacking!r}] = None\n"
        "from halp_store import cli_export\n"
        "typer.run(cli_export.export)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, out, "--format", form],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert lacking in done.stderr
    assert done.stderr.endswith(": pip install 'halp-stream[store]'\n")
    assert [one.name for one in tmp_path.iterdir()] == ["s"]


def test_the_command_line_costs_nothing():
    """Help and usage errors need neither numpy nor zarr nor any format's library."""
    code = "import halp_store.cli_export, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "zarr", "h5py", "pyarrow", "safetensors"} & set(loaded)
