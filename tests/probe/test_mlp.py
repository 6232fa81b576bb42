"""The published classifier in numpy: it trains as torch does, and folds into one `Network`."""

import dataclasses

import numpy as np
import pytest

from halp_probe.mlp import (
    CORRECTED,
    PUBLISHED,
    CannotTrain,
    Mlp,
    MlpSettings,
    train_mlp,
)
from tolerance import apart, assert_within, rounding

SMALL = MlpSettings(sizes=(16, 8, 4), epochs=5)


def _rows(count, features=6, seed=0, noise=1.0):
    """Wrong where two features together are large."""
    draws = np.random.default_rng(seed)
    x = draws.standard_normal((count, features), dtype=np.float32)
    return x, x[:, 0] - x[:, 1] + noise * draws.standard_normal(count) > 0


def _auroc(wrong, risk):
    """Over all pairs, by its definition."""
    above = risk[wrong][:, None] - risk[~wrong][None]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def _torch_twin(mlp, sizes, features):
    """The network of the published scripts, with the weights that `mlp` starts from."""
    import torch

    layers, before = [], features
    for size in sizes:
        layers += [torch.nn.Linear(before, size), torch.nn.ReLU(), torch.nn.BatchNorm1d(size)]
        before = size
    model = torch.nn.Sequential(*layers, torch.nn.Linear(before, 1), torch.nn.Sigmoid())
    linear = [one for one in model if isinstance(one, torch.nn.Linear)]
    with torch.no_grad():
        for one, (weight, bias, *_) in zip(linear, mlp.layers, strict=True):
            one.weight.copy_(torch.from_numpy(weight.T.copy()))
            one.bias.copy_(torch.from_numpy(bias.copy()))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_training_is_torchs_training(weighted):
    """The same first weights and batches give the same weights, statistics and risks."""
    import torch

    features, settings = 12, dataclasses.replace(PUBLISHED, sizes=(32, 16, 8), dropout=0.0)
    x, wrong = _rows(64, features)
    weights = np.where(wrong, 2.0, 0.5).astype(np.float32) if weighted else np.ones(64, np.float32)
    mlp = Mlp(features, settings, np.random.default_rng(1))
    model = _torch_twin(mlp, settings.sizes, features)
    adam = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    for _ in range(6):
        for rows in (slice(0, 32), slice(32, 61), slice(61, 64)):
            mlp.step(x[rows], wrong[rows], weights[rows])
            adam.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy(
                model(torch.from_numpy(x[rows])).squeeze(1),
                torch.from_numpy(wrong[rows].astype(np.float32)),
                torch.from_numpy(weights[rows]),
            )
            loss.backward()
            adam.step()
    # In each of 18 steps four layers, forwards, backwards and updated.
    bound = rounding(18 * 4 * 3, 64)
    linear = [one for one in model if isinstance(one, torch.nn.Linear)]
    norms = [one for one in model if isinstance(one, torch.nn.BatchNorm1d)]
    for one, (weight, bias, *_) in zip(linear, mlp.layers, strict=True):
        assert_within(apart(weight, one.weight.detach().numpy().T), bound)
        assert_within(apart(bias, one.bias.detach().numpy()), bound)
    for one, (_, _, gain, shift), seen in zip(norms, mlp.layers[:-1], mlp.running, strict=True):
        assert_within(apart(gain, one.weight.detach().numpy()), bound)
        assert_within(apart(shift, one.bias.detach().numpy()), bound)
        assert_within(apart(seen[0], one.running_mean.numpy()), bound)
        assert_within(apart(seen[1], one.running_var.numpy()), bound)
    model.eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).squeeze(1).numpy()
    network = mlp.network(np.zeros(features, np.float32), np.ones(features, np.float32))
    assert_within(apart(network.risk(x), expected), bound)


@pytest.mark.slow
def test_first_weights_are_drawn_as_torch_draws_them():
    """Both uniform, with the same bound, for weights and biases."""
    import torch

    mlp = Mlp(100, PUBLISHED, np.random.default_rng(0))
    for weight, bias, *_ in mlp.layers:
        twin = torch.nn.Linear(*weight.shape)
        for ours, theirs in ((weight, twin.weight), (bias, twin.bias)):
            bound = 1 / np.sqrt(weight.shape[0])
            assert np.abs(ours).max() <= bound
            assert theirs.abs().max().item() <= bound * (1 + rounding(1, 1))
            if ours.size > 1000:
                assert np.abs(ours).max() > 0.99 * bound
                assert np.std(ours) == pytest.approx(theirs.std().item(), rel=0.05)


def test_a_folded_network_is_the_network():
    """Batch normalisation in the next layer's weights gives the same risks."""
    x, wrong = _rows(200)
    mlp = Mlp(6, SMALL, np.random.default_rng(0))
    for start in range(0, 200, 20):
        rows = slice(start, start + 20)
        mlp.step(x[rows], wrong[rows], np.ones(20, np.float32))
    network = mlp.network(np.zeros(6, np.float32), np.ones(6, np.float32))
    assert [one.shape for one in network.weights] == [(6, 16), (16, 8), (8, 4), (4, 1)]
    assert all(one.dtype == np.float32 for one in (*network.weights, *network.biases))
    expected = 1 / (1 + np.exp(-mlp.logits(x).astype(np.float64)))
    assert_within(apart(network.risk(x), expected), rounding(5, 16))


def test_it_learns_what_there_is():
    """Rows it never saw are told apart, with the published settings and the corrected ones."""
    x, wrong = _rows(800, noise=0.3)
    unseen, truth = _rows(400, seed=1, noise=0.3)
    for settings in (PUBLISHED, CORRECTED):
        network, _ = train_mlp(
            x, wrong, dataclasses.replace(settings, epochs=8, patience=None), seed=0
        )
        assert _auroc(truth, network.risk(unseen)) > 0.93


def test_shuffled_labels_teach_nothing():
    """Nothing but the labels tells wrong from right."""
    x, wrong = _rows(400)
    shuffled = np.random.default_rng(5).permutation(wrong)
    network, _ = train_mlp(
        x, shuffled, dataclasses.replace(CORRECTED, epochs=5, patience=None), seed=0
    )
    unseen, truth = _rows(1000, seed=1)
    assert abs(_auroc(truth, network.risk(unseen)) - 0.5) < 0.12


def test_a_seed_gives_one_network():
    """The same seed the same bits, another seed another network."""
    x, wrong = _rows(100)
    one, two, other = (train_mlp(x, wrong, SMALL, seed=seed)[0] for seed in (3, 3, 4))
    for left, right in zip(one.weights, two.weights, strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.array_equal(one.weights[0], other.weights[0])


@pytest.mark.parametrize("rows", [2, 3, 33, 65])
def test_a_last_batch_of_one_row_breaks_nothing(rows):
    """One row has no variance: it is learned from together with the batch before it."""
    x, wrong = _rows(rows)
    wrong[:2] = [True, False]
    network, epochs = train_mlp(x, wrong, SMALL, seed=0)
    assert epochs == SMALL.epochs
    assert np.isfinite(network.risk(x)).all()


def test_patience_goes_back_to_the_best_epoch():
    """Where the validation rows contradict, the first epoch stays, and no more are tried."""
    x, wrong = _rows(300, noise=0.1)
    settings = dataclasses.replace(SMALL, epochs=30, patience=2)
    stopped, epoch = train_mlp(x, wrong, settings, seed=0, validation=(x, ~wrong))
    once, _ = train_mlp(
        x, wrong, dataclasses.replace(settings, epochs=epoch, patience=None), seed=0
    )
    assert epoch < 5
    for left, right in zip(stopped.weights, once.weights, strict=True):
        np.testing.assert_array_equal(left, right)
    _, long = train_mlp(x, wrong, settings, seed=0, validation=_rows(300, seed=1, noise=0.1))
    assert long > epoch


def test_without_patience_validation_changes_nothing():
    """The published settings train all epochs, whatever is known of other rows."""
    x, wrong = _rows(100)
    with_it, epochs = train_mlp(x, wrong, SMALL, seed=0, validation=(x, ~wrong))
    without, _ = train_mlp(x, wrong, SMALL, seed=0)
    assert epochs == SMALL.epochs
    np.testing.assert_array_equal(with_it.weights[0], without.weights[0])


def test_standardised_inputs_make_scales_irrelevant():
    """A feature in other units, and one that never changes, give the same risks."""
    x, wrong = _rows(200)
    factors = np.array([1e3, 1e-3, 1, 1, 1, 0], np.float32)
    offsets = np.array([50, 0, 0, 0, 0, 7], np.float32)
    x[:, 5] = 1
    settings = dataclasses.replace(SMALL, standardise=True)
    plain, _ = train_mlp(x, wrong, settings, seed=0)
    scaled, _ = train_mlp(x * factors + offsets, wrong, settings, seed=0)
    np.testing.assert_allclose(plain.risk(x), scaled.risk(x * factors + offsets), atol=2e-2)
    assert (scaled.scale > 0).all()


def test_balanced_classes_still_give_the_risk_of_the_classes_as_they_are():
    """Where one answer in ten is wrong, the mean risk is near a tenth and not near a half."""
    x, _ = _rows(2000)
    wrong = np.random.default_rng(2).random(2000) < 0.1
    settings = dataclasses.replace(SMALL, balance=True, standardise=True)
    network, _ = train_mlp(x, wrong, settings, seed=0)
    assert network.risk(x).mean() == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("wrong", [[], [True], [True, True, True], [False, False]])
def test_one_class_is_refused(wrong):
    """A sentence that says how many there are, and what to do."""
    x = np.zeros((len(wrong), 3), np.float32)
    with pytest.raises(CannotTrain, match=r"right and wrong.*label more"):
        train_mlp(x, np.array(wrong, bool), SMALL, seed=0)


def test_huge_features_are_an_answer_or_a_sentence():
    """Hidden states reach tens of thousands; without standardisation that must not overflow."""
    x, wrong = _rows(100)
    network, _ = train_mlp(x * np.float32(1e5), wrong, SMALL, seed=0)
    assert np.isfinite(network.risk(x * np.float32(1e5))).all()
