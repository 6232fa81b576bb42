"""The published pipeline on files of its format: its number, its leak, and what corrects it."""

import csv
import json
import math

import h5py
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from typer.testing import CliRunner

from halp_probe.cli import app
from halp_probe.errors import ProbeError
from halp_probe.fit import How, all_of
from halp_probe.judging.verdict import Kind, Label, Verdict
from halp_probe.published import (
    Judged,
    compare,
    published_auroc,
    published_order,
    published_split,
)
from halp_probe.published_table import said, shown
from halp_store.exchange.importing import import_published
from halp_store.reader import open_store

IMAGES, QUESTIONS, HIDDEN = 200, 3, 16
LAYERS = (0, 7)


def _row(number):
    """Of a planted data set: (wrong, is a yes/no question, what layer 7 of the query token knows).

    Answers on one image are right and wrong together, and the states know the image: who has seen
    it with one question knows the others. Something is known of the answer itself, and the form of
    the question.
    """
    image = number // QUESTIONS
    of_image = np.random.default_rng([1, image])
    difficulty, vector = of_image.standard_normal(), of_image.standard_normal(HIDDEN)
    draws = np.random.default_rng([2, number])
    signal = draws.standard_normal()
    wrong = 2.5 * difficulty + 2 * signal + 0.3 * draws.standard_normal() > 0
    vector = 3 * vector + 0.05 * draws.standard_normal(HIDDEN)
    vector[:2] = 3 * signal, 3 if number % 2 == 0 else -3
    return bool(wrong), number % 2 == 0, vector.astype(np.float32)


def _noise(*seed, size=HIDDEN):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def _write(folder):
    """Two files, the second with lower ids; labels by a rule: open answers are right."""
    total = IMAGES * QUESTIONS
    # Ids are dealt to images at random: neighbours by id are not neighbours by image.
    places = np.random.default_rng(4).permutation(total)
    parts = {"embeddings_part_001.h5": range(total // 3, total)}
    parts["embeddings_part_002.h5"] = range(total // 3)
    lines = []
    for name, numbers in parts.items():
        with h5py.File(folder / name, "w") as file:
            for number in numbers:
                wrong, is_yes_no, vector = _row(int(places[number]))
                group = file.create_group(f"question_comb_{number:04}")
                group["question"] = "Is it red?" if is_yes_no else "What colour is it?"
                group["image_id"] = f"{places[number] // QUESTIONS}.png"
                right, other = ("yes", "no") if is_yes_no else ("red", "green")
                group["ground_truth_answer"] = right
                group["answer"] = other if wrong else right
                group["vision_only_representation"] = _noise(5, number, size=4)
                for layer in LAYERS:
                    noise = _noise(6, number, layer)
                    group[f"vision_token_representation/layer_{layer}"] = noise
                    known = vector if layer == LAYERS[-1] else _noise(7, number)
                    group[f"query_token_representation/layer_{layer}"] = known
                lines.append((f"question_comb_{number:04}", wrong and is_yes_no))
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question_id", "is_hallucinating_manual"])
        writer.writerows(sorted(lines))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The two files as a store, beside its label CSV."""
    folder = tmp_path_factory.mktemp("published")
    _write(folder)
    done = import_published(folder / "old.zarr", sorted(folder.glob("*.h5")))
    assert (done.stored, done.problems) == (IMAGES * QUESTIONS, [])
    return folder


def _judged(folder, name):
    """As the label tables say it: the CSV's labels, or those of the truth."""
    store = open_store(folder / "old.zarr")
    with (folder / "labels.csv").open(newline="") as file:
        given = {one: value == "True" for one, value in list(csv.reader(file))[1:]}
    columns = store.read(["question_text", "ground_truth", "answer"])
    verdicts = {}
    for one, question, truth, answer in zip(
        store.ids, *(columns[name].tolist() for name in columns), strict=True
    ):
        wrong = given[one] if name == "labels" else truth != answer
        kind = Kind.YES_NO if question.startswith("Is") else Kind.SHORT
        verdicts[one] = Verdict(Label.WRONG if wrong else Label.RIGHT, "rule", kind)
    return Judged(name, 1, verdicts)


def _as_the_scripts_do(folder, layer):
    """(ids of the test set, X, y): independent of this project's code, file by file."""
    with (folder / "labels.csv").open(newline="") as file:
        labels = {
            one["question_id"]: one["is_hallucinating_manual"] for one in csv.DictReader(file)
        }
    ids, x, y = [], [], []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path, "r") as file:
            for one in file:
                ids.append(one)
                x.append(file[one][f"query_token_representation/layer_{layer}"][:])
                y.append(int(labels[one].lower() in ["true", "1", "yes"]))
    x, y = np.stack(x), np.array(y)
    return train_test_split(x, y, ids, test_size=0.2, random_state=42, stratify=y)


def _torch_auroc(x_train, x_test, y_train, y_test, seed):
    """The scripts' network and loop, as they are published."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # batches of 32 rows: on a busy machine threads only wait
    layers, before = [], x_train.shape[1]
    for size in (512, 256, 128):
        layers += [nn.Linear(before, size), nn.ReLU(), nn.BatchNorm1d(size), nn.Dropout(0.3)]
        before = size
    model = nn.Sequential(*layers, nn.Linear(before, 1), nn.Sigmoid())
    adam, loss_of = torch.optim.Adam(model.parameters(), lr=0.001), nn.BCELoss()
    x, y = torch.from_numpy(x_train), torch.from_numpy(y_train.astype(np.float32))
    for _ in range(50):
        for rows in torch.randperm(len(x)).split(32):
            adam.zero_grad()
            loss_of(model(x[rows]).squeeze(), y[rows]).backward()
            adam.step()
    torch.set_num_threads(threads)
    model.eval()
    with torch.no_grad():
        return roc_auc_score(y_test, model(torch.from_numpy(x_test)).squeeze().numpy())


def test_the_test_set_is_the_published_one(imported):
    """Row for row: rows in the order of the files, split as scikit-learn splits them."""
    store, judged = open_store(imported / "old.zarr"), _judged(imported, "labels")
    wrong = np.array([judged.verdicts[one].label is Label.WRONG for one in store.ids])
    order = published_order(store, store.ids)
    assert store.ids[order[0]] == "question_comb_0200"
    train, test = published_split(wrong, order, "labels")
    *_, train_ids, test_ids = _as_the_scripts_do(imported, 7)
    assert [store.ids[row] for row in train] == train_ids
    assert [store.ids[row] for row in test] == test_ids


@pytest.mark.slow
def test_the_published_number_comes_out(imported):
    """As torch and scikit-learn give it on the files themselves, over some seeds of each."""
    x_train, x_test, y_train, y_test, *_ = _as_the_scripts_do(imported, 7)
    theirs = [_torch_auroc(x_train, x_test, y_train, y_test, seed) for seed in range(3)]
    split = np.arange(len(x_train)), np.arange(len(x_train), len(x_train) + len(x_test))
    x, wrong = np.concatenate([x_train, x_test]), np.concatenate([y_train, y_test]) == 1
    ours = [published_auroc(x, wrong, split, seed) for seed in range(3)]
    # Of one seed: a deviation of 0.03.
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.06)


@pytest.fixture(scope="module")
def compared(imported):
    """Of the query token: the layer that knows, and the one that does not."""
    store = open_store(imported / "old.zarr")
    names = tuple(one for one in all_of(store) if one[0].column == "query_token")
    how = How(names, "logistic", seed=0, folds=5, inner_folds=2, jobs=1)
    return compare(store, _judged(imported, "labels"), _judged(imported, "truth"), how)


@pytest.mark.slow
def test_the_leak_inflates_the_published_figure(imported):
    """The same network and labels, but no image on both sides: the figure falls."""
    store = open_store(imported / "old.zarr")
    how = How(all_of(store)[-1:], "mlp", seed=0, folds=5, inner_folds=2, jobs=1)
    truth = _judged(imported, "truth")
    found = compare(store, truth, truth, how)
    (line,) = found.lines
    assert line.published > line.same_labels.high
    assert line.published > line.same_labels.value + 0.1
    assert line.same_labels == line.corrected
    assert found.leaked / found.tested > 0.8
    assert found.changed == {}


@pytest.mark.slow
def test_the_best_layer_is_picked_on_the_test_set(compared):
    """That is what was published; the corrected choice is made inside, and has no such figure."""
    assert compared.picked.published == max(one.published for one in compared.lines)
    assert compared.picked.name == "query_token@7"
    assert math.isnan(compared.chosen.published)
    assert compared.chosen.same_labels.low > 0.4


@pytest.mark.slow
def test_yes_no_alone_explains_labels_by_a_yes_no_rule(compared):
    """Where open answers are never wrong, the question's form tells; by the truth it does not."""
    assert compared.yes_no.published > 0.6
    assert compared.yes_no.same_labels.low > 0.6
    assert compared.yes_no.corrected.low < 0.5 < compared.yes_no.corrected.high + 0.02


@pytest.mark.slow
def test_labels_that_differ_are_counted(compared, imported):
    """Wrong open answers that the published rule calls right."""
    left, right = _judged(imported, "labels").verdicts, _judged(imported, "truth").verdicts
    differ = sum(left[one].label != right[one].label for one in left)
    assert compared.changed == {"right -> wrong": differ}
    assert differ > 50
    assert compared.published.rows == compared.corrected.rows == IMAGES * QUESTIONS
    assert compared.corrected.wrong - compared.published.wrong == differ


@pytest.mark.slow
def test_the_comparison_is_json_and_a_table(compared):
    """NaN is null in the one and a dash in the other."""
    found = json.loads(json.dumps(compared.to_json(), allow_nan=False))
    assert found["chosen"]["published"] is None
    assert found["picked"]["name"] == "query_token@7"
    assert found["settings"]["published"]["epochs"] == 50
    rows = list(shown(compared))
    assert len({len(row) for row in rows}) == 1
    assert rows[-2][1] == "-"
    assert any("labels that differ" in one for one in said(compared))


def test_a_test_set_of_one_class_is_a_half():
    """As the scripts report it; nothing is trained."""
    split = np.arange(8), np.arange(8, 10)
    wrong = np.array([True, False] * 4 + [False, False])
    assert published_auroc(np.full((10, 2), np.nan, np.float32), wrong, split, 0) == 0.5


@pytest.mark.parametrize("wrong", [[True], [True, False, False, False], [False] * 9 + [True]])
def test_too_few_rows_for_the_published_split_are_a_sentence(wrong):
    """With the counts and what to do."""
    with pytest.raises(ProbeError, match="of each label"):
        published_split(np.array(wrong), np.arange(len(wrong)), "labels")


@pytest.mark.slow
def test_from_files_to_both_tables_in_four_commands(imported, monkeypatch):
    """Labels from the CSV, labels by the truth, and the figures side by side."""
    monkeypatch.chdir(imported)
    runner = CliRunner()
    for judge in ("labels.csv", "auto"):
        done = runner.invoke(app, ["label", "old.zarr", "--judge", judge])
        assert done.exit_code == 0, done.output
    options = ["--judge", "labels", "--representation", "query_token@7", "--jobs", "1"]
    done = runner.invoke(app, ["published", "old.zarr", *options])
    assert done.exit_code == 0, done.output
    assert "query_token@7" in done.stdout
    assert "is it a yes/no question" in done.stdout
    again = runner.invoke(app, ["published", "old.zarr", *options, "--json"])
    found = json.loads(again.stdout)
    (line,) = found["lines"]
    assert line["published"] > line["corrected"]["high"]
    assert found["changed"].keys() == {"right -> wrong"}
    missing = runner.invoke(app, ["published", "old.zarr", "--judge", "nobody"])
    assert missing.exit_code == 1
    assert "halp-probe label" in missing.stderr
