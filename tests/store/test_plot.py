"""`halp-store plot`: the numbers behind the picture, the picture, and what is said without one."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from halp_store import open_store
from halp_store.cli import app
from halp_store.fields import field_of
from halp_store.geometry import NothingToMeasure, measure, principal_components, sample
from halp_store.plot import draw
from tolerance import apart, assert_within, relative, rounding

MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture(scope="module")
def make_store(tmp_path_factory, open_writer, make_rows, layout):
    """A store of so many rows; `change` may alter them before they are written."""

    def make(count, of=layout, change=lambda features: None):
        path = tmp_path_factory.mktemp("plot") / "s"
        writer = open_writer(path, of)
        if count:
            features = make_rows([f"q{number:03d}" for number in range(count)], of=of)
            change(features)
            writer.append(features)
            writer.flush()
        return path

    return make


@pytest.fixture(scope="module")
def path(make_store):
    def change(features):
        documents = [
            {
                "set": f"set {number % 13}",
                "score": number / 7,
                "label": number % 2,
                "$x^{": "\x1b犬",
            }
            for number in range(40)
        ]
        documents[3] = {}
        features.text["metadata"] = tuple(map(json.dumps, documents))
        features.text["finish_reason"] = ("stop",) * 30 + ("length",) * 10

    return make_store(40, change=change)


def _measure(path, rows=1000, column="query_token", layer=0, colour="finish_reason"):
    store = open_store(path)
    field = field_of(store.layout, colour)
    return measure(store, rows=rows, column=column, layer=layer, colour=field)


def _run(*arguments):
    return CliRunner().invoke(app, ["plot", *map(str, arguments)], env={"COLUMNS": "200"})


def test_norms_and_cosines_are_those_of_the_vectors(path):
    """Against all of them at once, in float64: mean, and the quantiles of the band."""
    store = open_store(path)
    for one in _measure(path).profiles:
        values = store.array(one.position)[1].astype(np.float64)
        norms = np.linalg.norm(values, axis=-1)
        cosines = (values[:, 0] * values[:, 1]).sum(axis=-1) / norms.prod(axis=-1)
        for band, expected in ((one.norm, norms), (one.cosine, cosines[:, None])):
            bound = rounding(3, values.shape[-1] * len(values), "float64")
            assert_within(relative(band.mean, expected.mean(axis=0)), bound)
            assert_within(relative(band.low, np.quantile(expected, 0.1, axis=0)), bound)
            assert_within(relative(band.high, np.quantile(expected, 0.9, axis=0)), bound)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (3, 2), (3, 100)])
def test_the_projection_is_onto_the_principal_components(shape):
    """Those of a singular value decomposition, whichever side is longer; signs apart."""
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    points, explained = principal_components(values)
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    left, lengths, right = np.linalg.svd(centred, full_matrices=False)
    signs = [np.sign(one[np.abs(one).argmax()]) for one in right[:2]]
    # A decomposition is so many turns of vectors so long. One way it is that of a product, whose
    # vectors turn the more the nearer its values are.
    squares = np.append(lengths, 0)[:3] ** 2
    nearness = squares[0] / np.abs(np.diff(squares)).min()
    bound = rounding(max(shape), max(shape), "float64") * nearness
    assert_within(apart(points, left[:, :2] * lengths[:2] * signs) / lengths[0], bound)
    assert_within(apart(explained, lengths[:2] ** 2 / (lengths**2).sum()), bound)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.zeros((1, 4)), "takes 3 rows at least; there is 1"),
        (np.eye(2), "takes 3 rows at least; there are 2"),
        (np.full((5, 4), 0.1), "all 5 vectors are the same"),
        (np.zeros((5, 4)), "all 5 vectors are the same"),
        (np.arange(5.0)[:, None], "takes 2 dimensions at least"),
    ],
)
def test_what_has_no_two_components_says_why(values, why):
    """Instead of a picture of rounding errors."""
    with pytest.raises(ValueError, match=why):
        principal_components(values.astype(np.float32))


def test_a_sample_is_the_same_each_time_and_in_order(path):
    """Drawn from all rows, none twice; all of them if they are few."""
    store = open_store(path)
    drawn = sample(store, 10).ids
    assert drawn == sample(open_store(path), 10).ids
    assert list(drawn) == sorted(set(drawn))
    assert (len(drawn), drawn == store.ids[:10]) == (10, False)
    assert sample(store, 40).ids == store.ids
    found = _measure(path, rows=10)
    assert (found.ids, found.total, found.projection.points.shape) == (drawn, 40, (10, 2))


def test_a_vector_of_zeros_has_no_direction(make_store):
    """Its cosine is left out; where all are zero, there is none."""

    def change(features):
        features.vectors["query_token"][:2, 0] = 0
        features.vectors["vision_token"][:, 1] = 0

    found = _measure(make_store(5, change=change))
    vision, query = found.profiles
    assert np.isnan(vision.cosine.mean).all()
    assert np.isfinite(query.cosine.mean).all()
    assert vision.norm.mean[1] == 0


def test_many_values_of_a_text_become_nine_and_the_others(path):
    """Each with how many rows it has, the most frequent first; what is not there is named so."""
    colours = _measure(path, colour="metadata.set").projection.colours
    assert len(colours.legend) == 10
    assert sum(count for _, count in colours.legend) == 40
    assert (colours.legend[-1][0], colours.others) == ("5 others", 5)
    sizes = [count for _, count in colours.legend[:-1]]
    assert sizes == sorted(sizes, reverse=True)
    for value, group in zip(colours.values, colours.groups, strict=True):
        assert colours.legend[group][0] in (value or "none", "5 others")
    reasons = _measure(path, colour="finish_reason").projection.colours
    assert (reasons.legend, reasons.others) == ((("stop", 30), ("length", 10)), 0)


def test_numbers_are_a_scale_and_a_few_labels_are_not(path):
    """Integer columns and numbers within the metadata; 0 and 1 there are labels, in their order."""
    tokens = _measure(path, colour="answer_tokens").projection.colours
    assert tokens.numbers.tolist() == list(tokens.values)
    scores = _measure(path, colour="metadata.score").projection.colours
    assert np.isnan(scores.numbers[3])
    assert scores.numbers[7] == 1
    risks = _measure(path, colour="risk").projection.colours
    assert [None if np.isnan(one) else one for one in risks.numbers] == list(risks.values)
    labels = _measure(path, colour="metadata.label").projection.colours
    assert labels.legend == (("0", 20), ("1", 19), ("none", 1))


def test_scores_are_a_scale_as_far_as_there_are_any(make_store, tmp_path):
    """Few different ones too; rows without one are grey, and without any it is one group."""

    def change(features):
        features.scores["risk"][:] = np.resize(np.array([0.25, 0.5, np.nan], np.float32), 12)
        features.scores["mean_logprob"][:] = np.nan
        features.scores["first_token_entropy"][:] = np.arange(12) / 4

    store = make_store(12, change=change)
    numbers = _measure(store, colour="risk").projection.colours.numbers
    np.testing.assert_array_equal(numbers, np.resize([0.25, 0.5, np.nan], 12))
    assert _measure(store, colour="mean_logprob").projection.colours.legend == (("none", 12),)
    for name, said in (
        ("risk", "risk; grey: none"),
        ("mean_logprob", "none (12)"),
        ("first_token_entropy", "first_token_entropy (nats)"),
    ):
        out = tmp_path / f"{name}.svg"
        assert _run(store, "--out", out, "--color", name).exit_code == 0
        assert f"<!-- {said} -->" in out.read_text()


@pytest.mark.parametrize("form", MAGIC)
def test_the_picture_is_of_the_kind_its_name_says(path, tmp_path, form):
    """And says what was drawn; the same store gives the same file."""
    out = tmp_path / f"x.{form.upper()}"
    result = _run(path, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        f"{out}: 40 of 40 rows; the projection is of query_token at layer 0, "
        "coloured by finish_reason\n"
    )
    assert out.read_bytes().startswith(MAGIC[form])
    before = out.read_bytes()
    assert _run(path, "--out", out, "--force").exit_code == 0
    assert out.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [out.name]


def _texts(path, out):
    """What is written in an SVG, whose letters matplotlib says in comments."""
    assert _run(path, "--out", out, "--force").exit_code == 0
    return out.read_text()


def test_the_picture_says_model_rows_units_and_shares(path, tmp_path):
    """So that it can be read without the command."""
    shown = _texts(path, tmp_path / "x.svg")
    for text in (
        '{"id": "small", "revision": "abc"} (bfloat16), N = 40 questions',
        "decoder layer (output of)",
        "Euclidean norm",
        "cosine similarity",
        "10th–90th percentile",
        "c   PCA of query_token, layer 0",
        "stop (30)",
        "length (10)",
    ):
        assert f"<!-- {text} -->" in shown
    result = _run(path, "--rows", 10, "--out", tmp_path / "y.svg", "--color", "answer_tokens")
    assert result.exit_code == 0
    shown = (tmp_path / "y.svg").read_text()
    assert "N = 10 of 40 questions, drawn at random (seed 0) -->" in shown
    assert "<!-- answer_tokens (tokens) -->" in shown
    result = _run(path, "--out", tmp_path / "z.svg", "--color", "metadata.score")
    assert "<!-- metadata.score; grey: none -->" in (tmp_path / "z.svg").read_text()


@pytest.mark.parametrize("colour", ["metadata.$x^{", "metadata.score", "metadata.nope", "metadata"])
def test_whatever_a_data_set_says_can_be_drawn(path, tmp_path, colour):
    """Formulas, control characters, scripts that the font lacks, and nothing at all."""
    result = _run(path, "--out", tmp_path / "x.png", "--color", colour, "--column", "vision_only")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "x.png").stat().st_size > 10_000


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_rows_are_drawn_as_far_as_they_go(make_store, tmp_path, count):
    """A projection takes three; its panel says so."""
    shown = _texts(make_store(count), tmp_path / "x.svg")
    assert ("a projection takes 3 rows at least" in shown) is (count < 3)
    assert ("percentile" in shown) is (count > 1)


def test_one_layer_has_no_neighbour(make_store, layout, tmp_path):
    """The panel of the cosine says so, and the norm is a bar."""
    path = make_store(5, of=dataclasses.replace(layout, layers=(21,)))
    shown = _texts(path, tmp_path / "x.svg")
    assert "only one layer is stored:" in shown
    assert "PCA of query_token, layer 21" in shown
    numbers = json.loads(_run(path, "--json").stdout)
    assert numbers["positions"]["query_token"]["cosine_to_next"]["mean"] == []


def test_norms_of_all_sizes_and_many_layers_have_few_labels(make_store, layout, tmp_path):
    """Powers of ten where they are far apart; every few layers, with the last."""

    def change(features):
        for name in layout.positions:
            features.vectors[name] *= 2.0 ** np.arange(20)[None, :, None]

    path = make_store(9, of=dataclasses.replace(layout, layers=tuple(range(20))), change=change)
    shown = _texts(path, tmp_path / "x.svg")
    for text in ("100,000", "19", "18–19"):
        assert f"<!-- {text} -->" in shown
    for text in ("200,000", "18", "17–18"):
        assert f"<!-- {text} -->" not in shown


def test_an_empty_store_has_nothing_to_draw(make_store, tmp_path):
    """Exit code 1, with what to do."""
    path = make_store(0)
    result = _run(path, "--out", tmp_path / "x.png")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there are no rows to draw yet; start a worker" in result.stderr
    assert not (tmp_path / "x.png").exists()
    with pytest.raises(NothingToMeasure):
        _measure(path)


def test_json_has_the_numbers_behind_the_picture(path, tmp_path, monkeypatch):
    """And nothing is drawn unless a file is named."""
    monkeypatch.chdir(tmp_path)
    arguments = [path, "--json", "--rows", 10, "--color", "answer_tokens"]
    numbers = json.loads(_run(*arguments).stdout)
    assert list(tmp_path.iterdir()) == []
    found = _measure(path, rows=10, colour="answer_tokens")
    assert (numbers["rows"], numbers["total"], numbers["seed"]) == (10, 40, 0)
    for one in found.profiles:
        assert numbers["positions"][one.position]["norm"]["mean"] == one.norm.mean.tolist()
    points = numbers["projection"]["points"]
    assert [one["question_id"] for one in points] == list(found.ids)
    assert [[one["x"], one["y"]] for one in points] == found.projection.points.tolist()
    assert [one["color"] for one in points] == list(found.projection.colours.values)
    assert json.loads(_run(*arguments, "--out", "x.png").stdout) == numbers
    assert [one.name for one in tmp_path.iterdir()] == ["x.png"]


def test_json_has_null_where_there_is_no_number(make_store):
    """NaN is not JSON."""

    def change(features):
        features.vectors["vision_token"][:, 1] = 0

    result = _run(make_store(2, change=change), "--json")
    assert "NaN" not in result.stdout
    numbers = json.loads(result.stdout)
    assert numbers["positions"]["vision_token"]["cosine_to_next"]["mean"] == [None]
    assert numbers["projection"]["explained"] is None
    assert numbers["projection"]["points"][0]["x"] is None


def test_a_picture_is_replaced_only_with_force(path, tmp_path):
    """Said before anything is read."""
    out = tmp_path / "x.png"
    out.write_bytes(b"mine")
    for store in (path, tmp_path / "nowhere"):
        result = _run(store, "--out", out)
        assert result.exit_code == 1
        assert f"{out}: exists; --force replaces it" in result.stderr
    assert out.read_bytes() == b"mine"
    assert _run(path, "--out", out, "--force").exit_code == 0
    assert out.read_bytes().startswith(MAGIC["png"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "x.jpg"], "expected a name that ends in .png, .svg or .pdf"),
        (["--out", "x"], "expected a name that ends in"),
        (["--json", "--column", "nope"], "no column of vectors 'nope'; there are vision_only"),
        (["--json", "--layer", "5"], "layer 5 is not stored; there are 0, 3"),
        (["--json", "--column", "vision_only", "--layer", "0"], "vision_only has no layers"),
        (["--json", "--color", "nope"], "no column 'nope'"),
        (["--json", "--color", "image_grid_thw"], "three numbers a row"),
        (["--json", "--rows", "0"], "--rows"),
    ],
)
def test_a_wrong_command_line_ends_with_2(path, arguments, said):
    """And a sentence that says what there is."""
    result = _run(path, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_what_is_projected_without_being_named(make_store, layout, path):
    """The query token at the last layer but one; of a store that lacks it, what there is."""
    projection = json.loads(_run(path, "--json").stdout)["projection"]
    assert (projection["column"], projection["layer"]) == ("query_token", 0)
    other = make_store(3, of=dataclasses.replace(layout, positions=("vision_token",)))
    assert json.loads(_run(other, "--json").stdout)["projection"]["column"] == "vision_token"


def test_a_picture_is_named_as_a_whole_or_not_at_all(path, tmp_path, monkeypatch):
    """Whatever goes wrong while it is drawn."""

    def fail_half_way(found, out, form, **_):
        out.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("halp_store.plot.draw", fail_half_way)
    result = _run(path, "--out", tmp_path / "x.png")
    assert result.exit_code == 1
    assert "No space left" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_a_model_is_shown_by_its_name(path, tmp_path):
    """Its whole path would take the title's room."""
    draw(_measure(path), tmp_path / "x", "svg", model="/srv/models/qwen-tuned/", dtype="float32")
    assert "<!-- qwen-tuned (float32), N = 40 questions -->" in (tmp_path / "x").read_text()


def test_without_matplotlib_one_sentence_names_the_extra(path, tmp_path):
    """Exit code 1; and with --json nothing is missing."""
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv[0] = 'halp-store'\n"
        "from halp_store.cli import main; main()"
    )

    def run(*arguments):
        command = [sys.executable, "-c", code, "plot", str(path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "halp-store plot needs matplotlib: pip install 'halp-stream[store]'\n"
    assert run("--json").returncode == 0


def test_help_has_examples():
    """So that nobody has to guess."""
    assert "halp-store plot run1.zarr --out run1.pdf" in _run("--help").stdout
