"""`train_mlp`: the published classifier, trained in numpy float32, as a `Network`.

Linear -> ReLU -> BatchNorm -> Dropout for each hidden layer, then Linear -> sigmoid; binary
cross-entropy, Adam. In numpy, because this room does without torch, and scikit-learn's
`MLPClassifier` has neither dropout nor batch normalisation: the published settings cannot be said
in it. Initial weights, Adam and BatchNorm are torch's defaults; a test holds the two together.

Knows rows of numbers; refuses to know where they come from and which of them may be trained on.
Not guaranteed: the same bits from another BLAS. N rows, F features, H units of a layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from halp_probe.errors import ProbeError
from halp_probe.logistic import standard
from halp_probe.network import Floats, Network

Wrong = npt.NDArray[np.bool_]

_BETAS: Final = (0.9, 0.999)
_ADAM_EPS: Final = 1e-8
_NORM_EPS: Final = 1e-5
_MOMENTUM: Final = 0.1
# Of Adam's buffers at a time, in numbers: four of them stay in a core's cache from step to step.
_ADAM_BLOCK: Final = 1 << 15
# Of rows through the network at a time, when nothing is learned.
_FORWARD_ROWS: Final = 2048


class CannotTrain(ProbeError):  # noqa: N818 - named for what it says
    """Too few rows, or numbers that training does not survive."""


@dataclass(frozen=True)
class MlpSettings:
    """sizes: units of each hidden layer. dropout: share of units that a step leaves out.

    patience: epochs without a better validation loss after which it stops, and goes back to the
        best one; None trains all `epochs`.
    standardise: inputs to mean 0 and deviation 1, of the training rows.
    balance: each class weighs as much as the other.
    """

    sizes: tuple[int, ...] = (512, 256, 128)
    dropout: float = 0.3
    learning_rate: float = 1e-3
    batch_rows: int = 32
    epochs: int = 50
    patience: int | None = None
    standardise: bool = False
    balance: bool = False


PUBLISHED: Final = MlpSettings()
"""Of the published scripts."""
CORRECTED: Final = MlpSettings(patience=5, standardise=True, balance=True)
"""The same network, with what the published scripts leave out."""


def train_mlp(
    x: Floats,
    wrong: Wrong,
    settings: MlpSettings,
    *,
    seed: int,
    validation: tuple[Floats, Wrong] | None = None,
) -> tuple[Network, int]:
    """The network, and how many epochs it has learned for.

    x: (N, F) float32, finite; wrong: (N,). validation: rows that choose the epoch, if the settings
    have patience; without them all epochs are trained.
    With `balance` the last bias is moved back by the log odds of the training rows afterwards, so
    that the risk is that of the classes as they are.
    Raises CannotTrain.
    """
    if len(x) < 2 or wrong.all() or not wrong.any():
        raise CannotTrain(
            f"an MLP learns from right and wrong answers: got {len(x)} rows, {int(wrong.sum())} of "
            "them wrong; label more rows"
        )
    mean, scale = standard(x, wanted=settings.standardise)
    inputs = (x - mean) / scale if settings.standardise else x
    weights = _row_weights(wrong, wanted=settings.balance)
    draws = np.random.default_rng(seed)
    mlp = Mlp(x.shape[1], settings, draws)
    watched = None
    if validation is not None and settings.patience is not None:
        watched = _Watched((validation[0] - mean) / scale, validation[1], settings)
    epoch = 0
    # A batch is too small to be shared: threads of a busy machine wait longer than they work.
    with threadpool_limits(1):
        for epoch in range(1, settings.epochs + 1):
            for rows in _batches(len(x), settings.batch_rows, draws):
                mlp.step(inputs[rows], wrong[rows], weights[rows])
            if watched is not None and watched.is_enough(mlp, epoch):
                break
    if watched is not None and watched.best is not None:
        epoch = watched.epoch
        mlp.restore(watched.best)
    moved = math.log(wrong.mean() / (1 - wrong.mean())) if settings.balance else 0.0
    network = mlp.network(mean, scale, moved)
    if not all(np.isfinite(one).all() for one in (*network.weights, *network.biases)):
        raise CannotTrain(
            "the MLP's weights are not finite any more: expected features near 1 in size, got up "
            f"to {float(np.abs(x).max()):.3g}; train with standardise"
        )
    return network, epoch


class _Kept(NamedTuple):
    """Of one layer's way forward, for the way back. B rows of a batch.

    values: (B, F) that it got. is_active: (B, H), where the ReLU let through. normal: (B, H) after
    the normalisation, before gain and shift; inverse: (H,) by which that multiplied.
    dropped: (B, H) factors. out: (B, H).
    """

    values: Floats
    is_active: npt.NDArray[np.bool_]
    normal: Floats
    inverse: Floats
    dropped: Floats | None
    out: Floats


class Mlp:
    """A network in training. parameters: float32, all in one vector, so that Adam is one pass.

    `layers[i]`: views on it: weight (F, H), bias (H,), and for all but the last gain and shift of
    the normalisation, (H,) each. `running[i]`: mean and variance that it has seen, (2, H).
    """

    def __init__(self, features: int, settings: MlpSettings, draws: np.random.Generator) -> None:
        self._settings, self._draws = settings, draws
        widths = (features, *settings.sizes, 1)
        shapes: list[tuple[tuple[int, ...], ...]] = [
            ((before, after), (after,), (after,), (after,))
            for before, after in itertools.pairwise(widths[:-1])
        ]
        shapes.append(((widths[-2], 1), (1,)))
        total = sum(math.prod(shape) for layer in shapes for shape in layer)
        self.parameters = np.empty(total, np.float32)
        self._gradient, self._first, self._second = np.zeros((3, total), np.float32)
        self._spare = np.empty(_ADAM_BLOCK, np.float32)
        self.layers = _views(self.parameters, shapes)
        self._gradients = _views(self._gradient, shapes)
        self.running = [np.stack([np.zeros(n), np.ones(n)]) for n in settings.sizes]
        self._steps = 0
        for weight, bias, *norm in self.layers:
            bound = 1 / math.sqrt(len(weight))
            weight[...] = draws.uniform(-bound, bound, weight.shape)
            bias[...] = draws.uniform(-bound, bound, bias.shape)
            for values, first in zip(norm, (1, 0), strict=False):
                values[...] = first

    def step(self, x: Floats, wrong: Wrong, weights: Floats) -> None:
        """Learn from one batch of at least two rows; weights: (B,) float32, of the rows' losses."""
        kept = []
        values = x
        for number in range(len(self.layers) - 1):
            kept.append(self._forward(number, values))
            values = kept[-1].out
        weight, bias = self.layers[-1]
        logits = (values @ weight)[:, 0] + bias
        slope = (_sigmoid(logits) - wrong) * (weights / np.float32(len(x)))
        to_weight, to_bias = self._gradients[-1]
        np.matmul(values.T, slope[:, None], out=to_weight)
        to_bias[...] = slope.sum()
        slope = slope[:, None] @ weight.T
        for number in reversed(range(len(kept))):
            self._backward(number, kept[number], slope)
            if number:
                slope = slope @ self.layers[number][0].T
        self._adam()

    def _forward(self, number: int, values: Floats) -> _Kept:
        weight, bias, gain, shift = self.layers[number]
        normal = values @ weight
        normal += bias
        np.maximum(normal, 0, out=normal)
        is_active = normal > 0
        mean = normal.mean(0)
        normal -= mean
        variance = np.einsum("bh,bh->h", normal, normal) / np.float32(len(values))
        self._remember(number, mean, variance, len(values))
        inverse = 1 / np.sqrt(variance + np.float32(_NORM_EPS))
        normal *= inverse
        dropped = self._dropped(normal.shape)
        out = normal * gain
        out += shift
        if dropped is not None:
            out *= dropped
        return _Kept(values, is_active, normal, inverse, dropped, out)

    def _backward(self, number: int, kept: _Kept, slope: Floats) -> None:
        """slope: of the loss by the layer's output; becomes that by what the ReLU got."""
        to_weight, to_bias, to_gain, to_shift = self._gradients[number]
        rows = np.float32(len(slope))
        if kept.dropped is not None:
            slope *= kept.dropped
        np.einsum("bh,bh->h", slope, kept.normal, out=to_gain)
        np.sum(slope, 0, out=to_shift)
        slope -= kept.normal * (to_gain / rows)
        slope -= to_shift / rows
        slope *= self.layers[number][2] * kept.inverse
        slope *= kept.is_active
        np.matmul(kept.values.T, slope, out=to_weight)
        np.sum(slope, 0, out=to_bias)

    def logits(self, x: Floats) -> Floats:
        """(N,) float32, as it would be used: running statistics, no dropout."""
        found = np.empty(len(x), np.float32)
        for start in range(0, len(x), _FORWARD_ROWS):
            values = x[start : start + _FORWARD_ROWS]
            for (weight, bias, gain, shift), running in zip(
                self.layers[:-1], self.running, strict=True
            ):
                values = np.maximum(values @ weight + bias, 0)
                mean, variance = running.astype(np.float32)
                values = (values - mean) / np.sqrt(variance + np.float32(_NORM_EPS)) * gain + shift
            weight, bias = self.layers[-1]
            found[start : start + len(values)] = (values @ weight)[:, 0] + bias
        return found

    def state(self) -> tuple[Floats, list[npt.NDArray[np.float64]]]:
        """A copy, for `restore`."""
        return self.parameters.copy(), [one.copy() for one in self.running]

    def restore(self, state: tuple[Floats, list[npt.NDArray[np.float64]]]) -> None:
        """As it was; Adam goes on as it is."""
        self.parameters[...] = state[0]
        self.running = [one.copy() for one in state[1]]

    def network(self, mean: Floats, scale: Floats, moved: float = 0.0) -> Network:
        """Each normalisation folded into the linear layer after it. moved: added to the logit."""
        weights, biases = [], []
        factor: npt.NDArray[np.float64] | None = None
        offset: npt.NDArray[np.float64] | None = None
        for number, (weight, bias, *norm) in enumerate(self.layers):
            w, b = weight.astype(np.float64), bias.astype(np.float64)
            if factor is not None and offset is not None:
                w, b = factor[:, None] * w, offset @ w + b
            if norm:
                gain, shift = norm
                seen, variance = self.running[number]
                factor = gain / np.sqrt(variance + _NORM_EPS)
                offset = shift - factor * seen
            weights.append(w.astype(np.float32))
            biases.append((b if norm else b + moved).astype(np.float32))
        return Network(mean, scale, tuple(weights), tuple(biases))

    def _remember(self, number: int, mean: Floats, variance: Floats, rows: int) -> None:
        """torch's: the variance that is remembered is the unbiased one."""
        seen = np.stack([mean, variance * (rows / (rows - 1))])
        self.running[number] += _MOMENTUM * (seen - self.running[number])

    def _dropped(self, shape: tuple[int, ...]) -> Floats | None:
        """Factors of 0, or of what makes up for those; None for no dropout."""
        share = self._settings.dropout
        if not share:
            return None
        kept: Floats = (self._draws.random(shape, np.float32) >= share).astype(np.float32)
        kept *= np.float32(1 / (1 - share))
        return kept

    def _adam(self) -> None:
        """Block by block in cache. The moments are kept without their factors 1 - beta, which are
        in `eps` and `rate` instead: two passes fewer."""
        self._steps += 1
        (one, two), steps = _BETAS, self._steps
        correction = math.sqrt((1 - two**steps) / (1 - two))
        eps = np.float32(_ADAM_EPS * correction)
        rate = np.float32(self._settings.learning_rate * (1 - one) / (1 - one**steps) * correction)
        for start in range(0, len(self.parameters), _ADAM_BLOCK):
            at = slice(start, start + _ADAM_BLOCK)
            slope, first, second = self._gradient[at], self._first[at], self._second[at]
            spare = self._spare[: len(slope)]
            first *= np.float32(one)
            first += slope
            second *= np.float32(two)
            np.multiply(slope, slope, out=slope)
            second += slope
            np.sqrt(second, out=spare)
            spare += eps
            np.divide(first, spare, out=spare)
            spare *= rate
            self.parameters[at] -= spare


class _Watched:
    """The validation loss, epoch by epoch, and the state at its lowest."""

    def __init__(self, x: Floats, wrong: Wrong, settings: MlpSettings) -> None:
        self._x, self._wrong, self._patience = x, wrong, settings.patience or 0
        self._weights = _row_weights(wrong, wanted=settings.balance)
        self._lowest = math.inf
        self.epoch = 0
        self.best: tuple[Floats, list[npt.NDArray[np.float64]]] | None = None

    def is_enough(self, mlp: Mlp, epoch: int) -> bool:
        logits = mlp.logits(self._x).astype(np.float64)
        losses = np.logaddexp(0, logits) - logits * self._wrong
        loss = float((losses * self._weights).mean())
        if loss < self._lowest:
            self._lowest, self.epoch, self.best = loss, epoch, mlp.state()
        return epoch - self.epoch >= self._patience


def _row_weights(wrong: Wrong, *, wanted: bool) -> Floats:
    """(N,) float32; with `wanted` the two classes have equal sums, where there are two."""
    share = float(wrong.mean()) if len(wrong) else 0.0
    if not wanted or share in {0.0, 1.0}:
        return np.ones(len(wrong), np.float32)
    return np.where(wrong, 0.5 / share, 0.5 / (1 - share)).astype(np.float32)


def _batches(
    rows: int, batch_rows: int, draws: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """All rows, in an order of this epoch. A last one alone has no variance: it joins others."""
    order = draws.permutation(rows)
    starts = list(range(0, rows, batch_rows))
    if len(starts) > 1 and rows - starts[-1] == 1:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], rows], strict=True):
        yield order[start:stop]


def _views(whole: Floats, shapes: list[tuple[tuple[int, ...], ...]]) -> list[tuple[Floats, ...]]:
    start, found = 0, []
    for layer in shapes:
        views = []
        for shape in layer:
            size = math.prod(shape)
            views.append(whole[start : start + size].reshape(shape))
            start += size
        found.append(tuple(views))
    return found


def _sigmoid(logits: Floats) -> Floats:
    """tanh does not overflow."""
    found: Floats = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * logits))
    return found
