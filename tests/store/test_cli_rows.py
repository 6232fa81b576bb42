"""`halp-store ls` and `query`: what they print, and how they end."""

import json
import re

import numpy as np
import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

from halp_producer.enqueue import enqueue_jobs
from halp_producer.job import Job
from halp_producer.keys import RunKeys
from halp_store import cli_rows, failed
from halp_store.cli import app

HOSTILE = "\x1b[31mred\x1b]0;title\x07\r\nsecond \u202eline\x9b2J 赤い犬" + "x" * 300


@pytest.fixture(scope="module")
def path(tmp_path_factory, open_writer, make_rows):
    """30 questions; the answer of the first wants to steer the terminal."""
    ids = [f"q{number:02d}" for number in range(30)]
    features = make_rows(ids)
    features.text["answer"] = (HOSTILE, *features.text["answer"][1:])
    features.text["image"] = tuple(f"val2014/{'deep/' * 20}{one}.jpg" for one in ids)
    features.text["finish_reason"] = tuple("length" if one > "q27" else "stop" for one in ids)
    features.text["metadata"] = tuple(json.dumps({"n": int(one[1:]), "set": "A"}) for one in ids)
    features.integers["answer_tokens"] = np.arange(30)
    features.scores["risk"] = np.array([np.nan, *np.arange(1, 30) / 30], np.float32)
    where = tmp_path_factory.mktemp("rows") / "s"
    writer = open_writer(where)
    writer.append(features)
    writer.flush()
    return str(where)


def _run(*arguments, **env):
    variables = {"NO_COLOR": "1", "COLUMNS": "150", "HALP_RUN": None, "HALP_REDIS_URL": None}
    return CliRunner().invoke(app, list(map(str, arguments)), env={**variables, **env})


def test_ls_prints_a_line_for_each_question(path):
    """The first twenty, and how many more there are, and how to see them."""
    result = _run("ls", path)
    assert result.exit_code == 0, result.output
    head, *lines = result.stdout.splitlines()
    assert re.split(r"  +", head) == list(cli_rows._USUAL)
    assert [line.split()[0] for line in lines] == [f"q{number:02d}" for number in range(20)]
    assert "30 rows, 1 to 20 shown; 10 more: --offset 20, or --limit 0 for all" in result.stderr


@pytest.mark.parametrize(
    ("options", "ids", "said"),
    [
        (["--limit", "2"], ["q00", "q01"], "1 to 2 shown; 28 more: --offset 2"),
        (["--limit", "2", "--offset", "28"], ["q28", "q29"], "30 rows, 29 to 30 shown\n"),
        (["--limit", "0"], [f"q{number:02d}" for number in range(30)], "30 rows\n"),
        (["--offset", "99"], [], "--offset 99 is beyond the last"),
    ],
)
def test_ls_shows_a_part(path, options, ids, said):
    """Of a store of any size, for people and for programs."""
    result = _run("ls", path, *options)
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ids
    assert said in result.stderr
    found = json.loads(_run("ls", path, *options, "--json").stdout)
    assert [row["question_id"] for row in found["rows"]] == ids
    assert (found["total"], found["shown"]) == (30, len(ids))


@pytest.mark.parametrize("columns", [60, 100, 150])
def test_a_line_fits_the_terminal_whatever_an_answer_holds(path, columns):
    """Wide characters count two cells; control characters are shown, not obeyed."""
    result = _run("ls", path, "--columns", "answer,answer_tokens", COLUMNS=str(columns))
    assert len(result.stdout.splitlines()) == 21
    assert all(cell_len(line) <= columns for line in result.stdout.splitlines())
    assert result.stdout.replace("\n", "").isprintable()
    assert "\\x1b[31mred" in result.stdout


def test_what_is_shortened_keeps_what_says_most(path):
    """The id as a whole, of a text its beginning, of a path its end."""
    line = _run("ls", path, COLUMNS="100").stdout.splitlines()[2]
    assert re.match(r"q01 +question_text.*…  ground_truth.*…  .*  stop  .*  …\S*q01\.jpg$", line)


def test_columns_are_chosen_and_the_id_comes_first(path):
    """Texts, integers, and what is within the metadata."""
    wanted = "metadata.n,answer_tokens,metadata.nope,image_grid_thw,metadata"
    result = _run("ls", path, "--columns", wanted, "--limit", 1, "--offset", 7)
    head, line = result.stdout.splitlines()
    assert head.split() == ["question_id", *wanted.split(",")]
    assert re.match(r'q07 +7 +7  - +\[\d+, \d+, \d+\]  \{"n": 7, "set": "A"\}', line)
    found = json.loads(_run("ls", path, "--columns", wanted, "--limit", 1, "--json").stdout)
    (row,) = found["rows"]
    assert list(row) == ["question_id", *wanted.split(",")]
    assert (row["metadata.n"], row["answer_tokens"], row["metadata.nope"]) == (0, 0, None)
    assert (row["metadata"], len(row["image_grid_thw"])) == ({"n": 0, "set": "A"}, 3)


def test_a_score_that_is_not_there_is_shown_as_nothing(path):
    """A dash for people, null in JSON, which has no NaN; others with four digits, or all."""
    wanted = ["risk", "--limit", 2]
    _, *lines = _run("ls", path, "--columns", *wanted).stdout.splitlines()
    assert [line.split() for line in lines] == [["q00", "-"], ["q01", "0.03333"]]
    text = _run("ls", path, "--columns", *wanted, "--json").stdout
    assert "NaN" not in text
    risks = [row["risk"] for row in json.loads(text)["rows"]]
    assert risks == [None, float(np.float32(1 / 30))]
    assert _run("query", path, "risk<0.1", "--ids").stdout.split() == ["q01", "q02"]


def test_many_rows_are_read_in_batches(path, monkeypatch):
    """With one head, and one JSON object."""
    whole, as_json = _run("ls", path, "--limit", 0), _run("ls", path, "--limit", 0, "--json")
    monkeypatch.setattr(cli_rows, "BATCH_ROWS", 7)
    again = _run("ls", path, "--limit", 0).stdout
    assert [line.split()[0] for line in again.splitlines()] == [
        line.split()[0] for line in whole.stdout.splitlines()
    ]
    assert _run("ls", path, "--limit", 0, "--json").stdout == as_json.stdout


def test_json_steers_no_terminal_either(path):
    """Control characters are escaped, all languages stay readable."""
    shown = _run("ls", path, "--limit", 1, "--json").stdout
    assert json.loads(shown)["rows"][0]["answer"] == HOSTILE
    assert shown.replace("\n", "").isprintable()
    assert "赤い犬" in shown


def test_query_prints_the_rows_that_meet_all_conditions(path):
    """As `ls` does, with how many of how many there are."""
    result = _run("query", path, "answer_tokens>5", "finish_reason=length", "--columns", "image")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["question_id", "q28", "q29"]
    assert "2 rows of 30\n" in result.stderr
    found = json.loads(_run("query", path, "metadata.n>=9", "--limit", 1, "--json").stdout)
    assert (found["conditions"], found["total"], found["shown"]) == (["metadata.n>=9"], 21, 1)
    assert found["rows"][0]["question_id"] == "q09"


def test_query_prints_all_ids_or_their_number(path):
    """For a pipe: nothing else on stdout, and no limit unless one is given."""
    ids = _run("query", path, "answer_tokens>=5", "--ids")
    assert ids.stdout.splitlines() == [f"q{number:02d}" for number in range(5, 30)]
    assert _run("query", path, "answer_tokens>5", "--ids", "--limit", 1).stdout == "q06\n"
    assert _run("query", path, "answer_tokens>=5", "--count").stdout == "25\n"
    none = _run("query", path, "answer_tokens>99", "--count")
    assert (none.exit_code, none.stdout) == (0, "0\n")


def test_no_row_is_a_result(path):
    """Exit code 0; where conditions were joined into one, a hint."""
    result = _run("query", path, "finish_reason=stop and answer_tokens>5")
    assert result.exit_code == 0
    assert "0 rows of 30" in result.stderr
    assert "give each as an argument of its own" in result.stderr


def test_an_id_with_a_line_break_is_not_printed_as_two(tmp_path, publish, open_writer, make_rows):
    """Somebody would export two questions that are not there."""
    open_writer(tmp_path / "s")
    publish(tmp_path / "s", make_rows(["a\nb"]))
    result = _run("query", tmp_path / "s", "answer~.", "--ids")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "use --json" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ls", "--columns", "nope"], "no column 'nope'; there are question_id"),
        (["ls", "--columns", "query_token"], "is a column of vectors"),
        (["ls", "--limit", "-1"], "--limit"),
        (["ls", "--run", "pilot"], "--run is of use with --failed only"),
        (["ls", "--redis-url", "redis://there"], "--redis-url is of use with --failed only"),
        (["ls", "--failed", "--columns", "answer"], "--columns is for what is stored"),
        (["ls", "--failed", "--run", "a b"], "a b"),
        (["query"], "CONDITION"),
        (["query", "nope=1"], "no column 'nope'"),
        (["query", "metadata.sett=A"], "the metadata holds metadata.n, metadata.set"),
        (["query", "answer~."], None),
        (["query", "answer~.", "--ids", "--json"], "choose one"),
    ],
)
def test_a_wrong_command_line_ends_with_2(path, arguments, said):
    """And a sentence that says what there is."""
    command, *rest = arguments
    result = _run(command, path, *rest)
    assert result.exit_code == (2 if said else 0)
    if said:
        assert said in " ".join(result.stderr.replace("│", " ").split())
        assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["ls"], ["query", "answer~."], ["ls", "--failed"]])
def test_no_store_ends_with_1_and_a_sentence(tmp_path, arguments):
    """On stderr, without a traceback, and before a server is asked."""
    command, *rest = arguments
    result = _run(command, tmp_path / "nowhere", *rest, HALP_REDIS_URL="redis://127.0.0.1:1/0")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not a store" in result.stderr


def test_a_run_that_was_left_over_asks_nobody(path):
    """Without --failed no variable of a run or a server matters; there is none here."""
    result = _run("ls", path, HALP_RUN="a b", HALP_REDIS_URL="redis://127.0.0.1:1/0")
    assert result.exit_code == 0, result.output


def _fail(client, run, *ids):
    keys = RunKeys(run)
    jobs = [Job(question_id=one, image=f"{one}.png", question="?", ground_truth="") for one in ids]
    enqueue_jobs(client, keys, jobs)
    for one in ids:
        fields = {"question_id": one, "reason": "image_missing", "image": f"{one}.png"}
        error = f"not found: {one}.png\x1b[2J"
        client.xadd(keys.failed, {**fields, "error": error, "attempts": 3})


def test_ls_failed_says_what_failed_and_why(path, server, client, run):
    """From the server: what failed is in no store. Oldest first, with what to do."""
    _fail(client, run, "z1", "q03", "z2")
    result = _run("ls", path, "--failed", "--run", run, "--redis-url", server.url)
    assert result.exit_code == 0, result.output
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["question_id", "reason", "error", "image"]
    assert [line.split()[0] for line in lines] == ["z1", "q03", "z2"]
    assert re.match(r"z1 +image_missing  not found: z1\.png\\x1b\[2J +z1\.png$", lines[0])
    assert f"run {run}: 3 failed\n" in result.stderr
    assert f"halp-producer failed retry ID --run {run}" in result.stderr
    part = ["--limit", 1, "--offset", 1]
    env = {"HALP_RUN": run, "HALP_REDIS_URL": server.url}
    result = _run("ls", path, "--failed", *part, **env)
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["q03"]
    assert "3 failed, 2 to 2 shown; 1 more: --offset 2" in result.stderr
    found = json.loads(_run("ls", path, "--failed", *part, "--json", **env).stdout)
    assert (found["run"], found["total"], found["shown"]) == (run, 3, 1)
    (row,) = found["rows"]
    assert (row["question_id"], row["attempts"], row["stored"]) == ("q03", 3, True)


def test_ls_failed_of_a_run_without_failures_is_empty(path, server, client, run):
    """And that is a good thing, not an error."""
    enqueue_jobs(
        client, RunKeys(run), [Job(question_id="a", image="a.png", question="?", ground_truth="")]
    )
    result = _run("ls", path, "--failed", "--run", run, "--redis-url", server.url)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"run {run}: 0 failed\n"


def test_ls_failed_of_an_unknown_run_or_server_ends_with_1_and_a_sentence(path, server, run):
    """On stderr, without a traceback."""
    for url, said in ((server.url, run), ("redis://127.0.0.1:1/0", "127.0.0.1:1")):
        result = _run("ls", path, "--failed", "--run", run, "--redis-url", url)
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr
        assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("command", ["ls", "query"])
def test_help_has_examples_and_explains_every_option(command):
    """So that nobody has to guess."""
    assert f"halp-store {command} run1.zarr" in _run(command, "--help").stdout
    options = typer.main.get_command(app).commands[command].params
    assert all(one.help for one in options if one.name != "help")


def test_the_producer_is_asked_lazily():
    """Who lists a store needs nothing of the queue."""
    for module in (failed, cli_rows):
        source = module.__loader__.get_source(module.__name__)
        assert not re.findall(r"(?m)^(?:from|import) (?:redis|halp_producer)", source)
