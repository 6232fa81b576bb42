"""`halp-store compact`: what it says, as JSON, and its exit codes."""

import json

from typer.testing import CliRunner

from halp_store.cli import app


def _run(*arguments):
    return CliRunner().invoke(app, ["compact", *map(str, arguments)])


def test_it_says_what_it_did_and_what_comes_next(tmp_path, fill):
    """Generation, rows, segments; how to open it and how to prune."""
    fill(tmp_path, [f"q{one}" for one in range(20)])
    shown = _run(tmp_path)
    assert shown.exit_code == 0
    assert "compacted/000001: 20 rows, 3 segments taken" in shown.stdout
    assert f"halp-store compact {tmp_path} --prune" in shown.stdout
    assert f'xarray.open_zarr("{tmp_path}/compacted/000001")' in shown.stdout
    assert "has all 20 rows already" in _run(tmp_path).stdout


def test_pruning_is_told_with_what_is_left(tmp_path, fill):
    """Within the grace time nothing goes, and when it can is said."""
    fill(tmp_path, ["a", "b"])
    shown = _run(tmp_path, "--prune").stdout
    assert "pruned: 0 segments and 0 older generations, 0 files" in shown
    assert "left for now: 1 that were covered too recently; the same command removes" in shown
    assert "pruned: 1 segments" in _run(tmp_path, "--prune", "--grace-seconds", "0").stdout


def test_json_has_all_of_it(tmp_path, fill, publish, make_rows):
    """One object; contradictions and what was dropped are in it."""
    fill(tmp_path, ["a"])
    publish(tmp_path, make_rows(["a"], "other"), "zz")
    found = json.loads(_run(tmp_path, "--json", "--prune", "--grace-seconds", "0").stdout)
    assert found["prune"].pop("files") > 50
    assert found == {
        "store": str(tmp_path),
        "generation": "compacted/000001",
        "rows": 1,
        "segments": 2,
        "resumed": False,
        "dropped": 1,
        "contradictions": ["a"],
        "prune": {"segments": 2, "generations": 0, "waiting": 0, "seconds": None},
    }


def test_what_is_no_store_is_said_in_a_sentence(tmp_path, fill):
    """Exit code 1 without a traceback; 2 for a wrong command line; an empty store is no error."""
    refused = _run(tmp_path)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "not a store" in refused.stderr
    assert _run(tmp_path, "--grace-seconds", "-1").exit_code == 2
    assert _run(tmp_path, "--scratch", tmp_path / "nowhere").exit_code == 2
    fill(tmp_path, [])
    assert "nothing to compact" in _run(tmp_path).stdout
    assert "s3://" in _run("http://host/store").stderr
