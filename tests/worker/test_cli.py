"""The command `halp-worker`: options, environment, one-sample extraction."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from halp_worker.cli import app
from tolerance import apart, assert_within

from .conftest import make_job


def command(name):
    return typer.main.get_command(app).commands[name]


def test_every_option_of_run_is_also_an_environment_variable():
    """`HALP_` and the option's name."""
    for option in command("run").params:
        assert (
            option.envvar == "HALP_" + option.opts[0].removeprefix("--").replace("-", "_").upper()
        )


def test_the_options_of_run_are_the_settings_of_a_worker():
    """No option without an effect, no setting without an option."""
    from halp_worker.settings import ModelSettings, WorkerSettings

    options = {one.opts[0].removeprefix("--").replace("-", "_") for one in command("run").params}
    settings = {
        field.name for kind in (WorkerSettings, ModelSettings) for field in dataclasses.fields(kind)
    }
    assert options == settings


@pytest.mark.parametrize("name", ["run", "extract", "demo"])
def test_each_command_has_help_with_an_example(name):
    """What it is for, and a line to copy."""
    shown = CliRunner().invoke(app, [name, "--help"], terminal_width=200)
    assert shown.exit_code == 0
    assert f"halp-worker {name}" in shown.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "--store", "x", "--batch-size", "0"],
        ["run", "--store", "x", "--run", "a b"],
        ["run", "--store", "x", "--image-root", "/nowhere/at/all"],
        ["nonsense"],
    ],
)
def test_wrong_usage_ends_with_two(arguments):
    """A missing or impossible option."""
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_a_server_that_is_not_there_ends_with_one(tmp_path):
    """Before any model is loaded, with what to do, and without the password."""
    shown = CliRunner().invoke(
        app,
        ["run", "--store", str(tmp_path / "s"), "--redis-url", "redis://:s3cret@127.0.0.1:9/0"],
    )
    assert shown.exit_code == 1
    assert "no server at redis://" in shown.output
    assert "s3cret" not in shown.output
    assert "Traceback" not in shown.output


@pytest.mark.slow
def test_extract_prints_answer_positions_and_shapes(bench, checkpoint, photos):
    """One sample, no server, no store; the same numbers as in a batch of one."""
    from .conftest import Question

    arguments = ["extract", str(photos / "coffee.png"), "What is it?", "--model", str(checkpoint)]
    options = ["--dtype", "float32", "--device", "cpu", "--max-new-tokens", "6"]
    shown = CliRunner().invoke(app, [*arguments, *options, "--json"])
    assert shown.exit_code == 0, shown.output
    summary = json.loads(shown.stdout)
    bench = bench()
    expected = bench.extract(bench.samples((Question("coffee.png", "What is it?"),))).features
    assert summary["answer"] == expected.text["answer"][0]
    assert summary["vision_token_position"] == expected.integers["vision_token_position"][0]
    assert summary["layers"] == [0, 7, 14, 21, 27]
    assert summary["arrays"]["query_token"]["shape"] == [5, 64]
    norm = np.linalg.norm(expected.vectors["query_token"][0], axis=-1)
    bound = bench.bound() * norm.max() + 0.5e-4  # printed to four digits
    assert_within(apart(summary["arrays"]["query_token"]["norm"], norm), bound)
    plain = CliRunner().invoke(app, [*arguments, *options])
    assert summary["answer"] in plain.output


@pytest.mark.slow
def test_extract_of_a_missing_image_is_a_sentence(checkpoint, tmp_path):
    """Exit code 1 and where it was looked for."""
    arguments = ["extract", str(tmp_path / "no.png"), "What?", "--model", str(checkpoint)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 1
    assert "image not found: no.png" in shown.output


@pytest.mark.slow
def test_a_store_that_cannot_be_written_is_a_sentence(server, run, enqueue, checkpoint, tmp_path):
    """What the system says of the path, without a traceback; no job is taken."""
    enqueue(make_job(1))
    (tmp_path / "file").write_text("in the way")
    shown = CliRunner().invoke(
        app,
        [
            *("run", "--store", str(tmp_path / "file" / "s.zarr"), "--model", str(checkpoint)),
            *("--redis-url", server.url, "--device", "cpu", "--until-empty", "--run", run),
        ],
    )
    assert shown.exit_code == 1
    assert str(tmp_path / "file") in shown.output
    assert "Traceback" not in shown.output
