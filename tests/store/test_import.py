"""Published HDF5 files into a store: what is taken, what is refused, and what nobody knows."""

import json
import os
import signal

import h5py
import numpy as np
import pytest

from halp_store.errors import NotAStore
from halp_store.exchange import importing
from halp_store.exchange.export import Format, Published, export_store
from halp_store.exchange.imported import ImportRefused
from halp_store.exchange.importing import import_published
from halp_store.exchange.unfinished import MARK
from halp_store.layout import Layout
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.verify import verify_store

LAYERS = (0, 7)
QUERY = "query_token_representation"
VISION = "vision_only_representation"
TOKENS = ("vision_token_representation", "query_token_representation")


def _vector(name, size=8):
    return np.random.default_rng([*name.encode()]).standard_normal(size).astype(np.float32)


def _group(file, name, *, vision=6, layers=LAYERS, hidden=8, answer="Yes.", content=""):
    """As the published scripts write it."""
    group = file.create_group(name)
    group.create_dataset("question", data=f"question of {name}?")
    group.create_dataset("image_id", data=f"{name}.png")
    group.create_dataset("ground_truth_answer", data="N/A")
    group.create_dataset("answer", data=answer)
    group.create_dataset("vision_only_representation", data=_vector(f"{name}{content}", vision))
    for kind in TOKENS:
        tokens = group.create_group(kind)
        for layer in layers:
            tokens[f"layer_{layer}"] = _vector(f"{name}{content}{kind}{layer}", hidden)
    return group


@pytest.fixture
def part(tmp_path):
    """Write a file of groups with these names, and let `change` do its worst."""

    def write(*names, change=None, name="embeddings_part_001.h5", **options):
        with h5py.File(tmp_path / name, "w") as file:
            for one in names:
                _group(file, one, **options)
            if change:
                change(file)
        return tmp_path / name

    return write


@pytest.fixture
def store(tmp_path):
    return tmp_path / "old.zarr"


def _reasons(result):
    return {problem.group: problem.reason for problem in result.problems}


def test_a_published_file_becomes_rows(store, part):
    """Texts and vectors as they are; what the file does not have is said to be unknown."""
    done = import_published(store, [part("q1", "q2")])
    assert (done.stored, done.present, done.problems, done.left_out) == (2, 0, [], {})
    opened = open_store(store)
    assert (opened.ids, opened.layers) == (("q1", "q2"), LAYERS)
    row = opened["q2"]
    assert (row.question_text, row.image, row.ground_truth, row.answer) == (
        "question of q2?",
        "q2.png",
        "N/A",
        "Yes.",
    )
    assert row.metadata == {"imported_from": "embeddings_part_001.h5"}
    np.testing.assert_array_equal(row.arrays["vision_encoder"], _vector("q2", 6))
    for position, kind in zip(("halp_reference", "query_token"), TOKENS, strict=True):
        expected = [_vector(f"q2{kind}{layer}") for layer in LAYERS]
        np.testing.assert_array_equal(row.arrays[position], expected)
    assert (row.image_sha256, row.finish_reason, row.prompt_tokens) == ("", "unknown", -1)
    assert (row.image_grid_thw, set(row.positions.values())) == ((-1, -1, -1), {-1})
    assert opened.layout.fingerprint["imported"] == {
        "format": "halp-hdf5",
        "vision_only_representation": "vision_encoder",
        "vision_token_representation": "halp_reference",
        "unknown": [
            "image_sha256",
            "prompt_tokens",
            "image_tokens",
            "answer_tokens",
            "image_grid_thw",
            "halp_reference_position",
            "query_token_position",
            "vision_only",
        ],
    }


def test_verify_takes_unknown_for_what_it_is(store, part):
    """-1 in the columns that the fingerprint lists is no problem."""
    import_published(store, [part("q1", "q2")])
    assert verify_store(LocalStorage(store)).problems == ()


@pytest.mark.parametrize(
    ("size", "asked", "column"),
    [
        (6, None, "vision_encoder"),
        (8, None, "vision_only"),
        (8, "vision_encoder", "vision_encoder"),
    ],
)
def test_the_vision_vector_is_known_by_its_size_or_by_name(store, part, size, asked, column):
    """As long as a token's state: after the merger. The other of the two columns is not there."""
    import_published(store, [part("q", vision=size)], published=Published(vision=asked))
    opened = open_store(store)
    assert set(opened.layout.vector_columns()) == {column, "halp_reference", "query_token"}
    np.testing.assert_array_equal(opened.array(column)[1], [_vector("q", size)])


def test_what_was_exported_comes_back(tmp_path, open_writer, make_rows):
    """The same texts and vectors; the file says which columns its fields were."""
    writer, ids = open_writer(tmp_path / "s"), ["q3", "q1", "é \N{WATERMELON}"]
    writer.append(make_rows(ids))
    writer.flush()
    before = open_store(tmp_path / "s")
    for vision in ("vision_encoder", "vision_only"):
        out, store = tmp_path / f"{vision}.h5", tmp_path / vision
        export_store(before, out, Format.HDF5, published=Published(vision=vision))
        assert import_published(store, [out]).stored == 3
        after = open_store(store)
        assert after.ids == before.ids
        columns = ["question_text", "image", "ground_truth", "answer", "vision_token"]
        columns += ["query_token", vision]
        for name, values in after.read(columns).items():
            assert values.tolist() == before.read([name])[name].tolist(), name
        again = tmp_path / f"{vision}-again.h5"
        export_store(after, again, Format.HDF5)
        with h5py.File(out) as first, h5py.File(again) as second:
            names = []
            first.visit(names.append)
            assert len(names) == 3 * 12
            for name in names:
                if isinstance(first[name], h5py.Dataset):
                    assert np.array_equal(first[name][()], second[name][()]), name


def test_texts_and_vectors_may_be_stored_in_any_way(store, part):
    """Bytes of a fixed length, a text in an array, half precision, a row of a matrix."""

    def change(file):
        group = file["q"]
        for name in ("question", "answer", "vision_only_representation"):
            del group[name]
        group["question"] = np.bytes_("é?".encode())
        group.create_dataset("answer", data=["Yes."], dtype=h5py.string_dtype())
        group["vision_only_representation"] = _vector("half", 6).astype(np.float16)[None]
        group["query_token_representation"]["layer_0"][...] = 1.5

    assert import_published(store, [part("q", change=change)]).problems == []
    row = open_store(store)["q"]
    assert (row.question_text, row.answer) == ("é?", "Yes.")
    half = _vector("half", 6).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(row.arrays["vision_encoder"], half)


def _replace(name, value):
    def change(file):
        del file["bad"][name]
        if value is not None:
            file["bad"][name] = value

    return change


def _rename(file):
    tokens = file["bad"]["query_token_representation"]
    tokens.move("layer_7", "layer_n_4")


def _huge(file):
    del file["bad"][VISION]
    file["bad"].create_dataset(VISION, (2**40,), "f4", chunks=(2**20,))


def _link(file):
    del file["bad"]["answer"]
    file["bad"]["answer"] = h5py.ExternalLink("/etc/hostname", "/")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_replace("answer", None), "has no answer"),
        (_replace("answer", 7), "answer: expected a text, got int64 ()"),
        (_replace("answer", np.bytes_(b"\xff")), "answer: expected UTF-8"),
        (_replace(VISION, None), f"has no {VISION}"),
        (_replace(VISION, np.full(6, np.nan, "f4")), f"{VISION}: has values that are not finite"),
        (_replace(VISION, np.full(6, 0.1)), "float64 with values that float32 does not hold"),
        (_replace(VISION, np.full(6, 1e300)), "float64 with values that float32 does not hold"),
        (
            _replace(VISION, np.zeros((2, 6), "f4")),
            "expected one vector of floats, got float32 (2, 6)",
        ),
        (_replace(VISION, np.zeros(0, "f4")), "expected one vector of floats"),
        (_replace(VISION, np.zeros((), "f4")), "expected one vector of floats"),
        (_huge, "expected one vector of floats, got float32 (1099511627776,)"),
        (_replace(VISION, np.zeros(5, "f4")), "and a vision vector of 6, got layers (0, 7), tok"),
        (_replace(VISION, "text"), "expected one vector of floats"),
        (_replace(QUERY, np.zeros(8, "f4")), f"{QUERY}: expected a group of layers"),
        (_replace(f"{QUERY}/layer_7", None), "differ in layers or size"),
        (_replace(f"{QUERY}/layer_7", np.zeros(9, "f4")), "differ in layers or size"),
        (_rename, "expected layer_<number>, got 'layer_n_4'"),
        (_link, "answer: expected a dataset, got a link"),
    ],
)
def test_a_bad_group_is_named_and_harms_no_other(store, part, change, reason):
    """File, group and reason; its neighbours are stored."""
    path = part("bad", "z1", "z2", "z3", change=change)
    done = import_published(store, [path])
    assert done.stored == 3
    [problem] = done.problems
    assert (problem.file, problem.group) == (str(path), "bad")
    assert reason in problem.reason
    assert problem.sentence.startswith(f"{path}: group 'bad': ")
    assert open_store(store).ids == ("z1", "z2", "z3")


def test_what_stands_beside_the_groups_is_a_problem_too(store, part):
    """A dataset or a link at the root, a name that is not UTF-8."""

    def change(file):
        file["loose"] = 3
        file["link"] = h5py.SoftLink("/q")
        h5py.h5g.create(file.id, b"\xff")

    assert _reasons(import_published(store, [part("q", change=change)])) == {
        "loose": "expected a group, got a dataset",
        "link": "expected a group, got a link",
        "\\xff": "its name is not UTF-8",
    }


def test_what_else_is_in_a_group_is_kept_or_counted(store, part):
    """One value goes to the metadata; anything larger is not stored, and said."""

    def change(file):
        for name in ("q1", "q2"):
            file[name]["category"] = "object"
            file[name]["difficulty"] = 3
            file[name]["logits"] = np.zeros(5)
            file[name].create_group("notes")

    done = import_published(store, [part("q1", "q2", change=change)])
    assert (done.stored, done.left_out) == (2, {"logits": 2, "notes": 2})
    metadata = open_store(store)["q1"].metadata
    assert metadata == {
        "category": "object",
        "difficulty": 3,
        "imported_from": "embeddings_part_001.h5",
    }


def test_a_note_of_a_failed_generation_is_no_answer(store, part):
    """The published scripts stored their error as the answer; `finish_reason` tells them apart."""
    import_published(store, [part("q", answer="[Generation failed: CUDA out of memory]")])
    assert open_store(store)["q"].finish_reason == "failed"


def test_the_same_again_changes_nothing(store, part):
    """Also from another file; an id with other content is a conflict, and the first one stays."""
    first = part("q1", "q2")
    import_published(store, [first])
    segments = open_store(store).segments
    copy = part("q1", name="copy.h5")
    done = import_published(store, [first, copy])
    assert (done.stored, done.present, done.problems) == (0, 3, [])
    assert open_store(store).segments == segments
    other = part("q1", "q3", name="other.h5", content="other")
    done = import_published(store, [other])
    assert (done.stored, done.present) == (1, 0)
    assert _reasons(done) == {"q1": "its id is stored with other content, which stays"}
    np.testing.assert_array_equal(
        open_store(store)["q1"].arrays["vision_encoder"], _vector("q1", 6)
    )


def test_two_parts_of_one_call_may_share_ids(store, part):
    """Equal content counts once, other content is a conflict, before anything is committed."""
    one = part("q1", "q2")
    two = part(
        "q2",
        "q1",
        change=lambda file: file["q1"]["answer"].write_direct(np.array("No.", "O")),
        name="two.h5",
    )
    done = import_published(store, [one, two])
    assert (done.stored, done.present) == (2, 1)
    assert [(problem.file, problem.group) for problem in done.problems] == [(str(two), "q1")]
    assert open_store(store)["q1"].answer == "Yes."


def test_an_import_that_was_killed_goes_on(store, part, fork, monkeypatch):
    """SIGKILL between commits, then the same command: each row once."""
    monkeypatch.setattr(importing, "_FLUSH_ROWS", 2)
    names = tuple(f"q{number}" for number in range(9))
    path = part(*names)

    def die(done: int, total: int) -> None:
        if done == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    child = fork(lambda: import_published(store, [path], progress=die))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert open_store(store).ids == names[:4]
    done = import_published(store, [path])
    assert (done.stored, done.present) == (5, 4)
    opened = open_store(store)
    assert (opened.ids, opened.contradictions) == (names, ())
    assert sum(len(ids) for ids in [opened.ids]) == 9
    np.testing.assert_array_equal(
        opened.array("vision_encoder")[1], [_vector(name, 6) for name in names]
    )


def test_a_file_that_is_none_is_one_problem(store, part, tmp_path):
    """Missing, no HDF5, cut short, empty: named, and the other parts are read."""
    good, cut = part("q"), part("x", name="cut.h5")
    cut.write_bytes(cut.read_bytes()[:-1000])
    (tmp_path / "text.h5").write_text("question_id,answer")
    bad = [tmp_path / "nope.h5", tmp_path / "text.h5", cut]
    done = import_published(store, [*bad, good])
    assert (done.stored, [problem.file for problem in done.problems]) == (1, list(map(str, bad)))
    assert all("cannot be read as HDF5" in problem.reason for problem in done.problems)


def test_without_one_good_group_there_is_no_store(store, part):
    """Every reason is given, and nothing is made."""
    bad = part("bad", change=_replace("answer", None))
    empty = part(name="empty.h5")
    done = import_published(store, [bad, empty])
    assert [problem.reason for problem in done.problems] == ["has no answer", "has no groups"]
    assert not store.exists()


def test_most_groups_decide_what_the_store_is_like(store, part):
    """One odd group in front is the bad one, not all that come after it."""
    path = part("q1", "q2", change=lambda file: _group(file, "a", layers=(0, 7, 9)))
    done = import_published(store, [path])
    assert (done.stored, [problem.group for problem in done.problems]) == (2, ["a"])


def test_a_store_of_another_kind_is_left_alone(tmp_path, store, part, open_writer, make_rows):
    """A worker's store, files of something else, an import of other fields."""
    writer = open_writer(tmp_path / "worker.zarr")
    writer.append(make_rows(["a"]))
    writer.flush()
    with pytest.raises(ImportRefused, match="not a store of imported rows"):
        import_published(tmp_path / "worker.zarr", [part("q")])
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("years of work")
    with pytest.raises(NotAStore, match="other files"):
        import_published(tmp_path / "home", [part("q")])
    import_published(store, [part("q")])
    with pytest.raises(ImportRefused, match="as vision_encoder, not as vision_only"):
        import_published(store, [part("q")], published=Published(vision="vision_only"))
    origin = json.dumps({"sources": {"vision_token_representation": "vision_token"}})
    said = part("r", name="said.h5", change=lambda file: file.attrs.create(MARK, origin))
    assert _reasons(import_published(store, [said])) == {
        None: "its vision_token_representation is vision_token, the store's is halp_reference; "
        "use another store"
    }


@pytest.mark.parametrize("origin", ["", "[]", "{}", '{"sources": 3}', '{"sources": {"a": []}}', 7])
def test_any_attribute_may_stand_where_ours_does(store, part, origin):
    """A file that says something else there is a file like any other."""
    path = part("q", change=lambda file: file.attrs.create(MARK, origin))
    assert import_published(store, [path]).stored == 1
    assert open_store(store).positions == ("halp_reference", "query_token")


def test_the_layout_of_other_stores_is_what_it_was(layout, plain):
    """Nothing is added to the root's attributes, and nothing is unknown."""
    assert list(layout.to_json()) == [*plain.to_json(), "scores"]
    assert list(plain.to_json()) == [
        "layers",
        "positions",
        "hidden_size",
        "vision_hidden_size",
        "source_dtype",
        "fingerprint",
    ]
    assert layout.unknown == frozenset()
    for fingerprint in ({"imported": None}, {"imported": {}}, {"imported": []}):
        other = Layout(**{**vars(layout), "fingerprint": fingerprint})
        assert other.vector_columns() == layout.vector_columns()
