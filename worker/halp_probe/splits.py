"""`folds`: splits of rows in which no image is on both sides, stratified by label.

Knows groups and labels as numbers; refuses to know what is learned from them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from halp_probe.errors import ProbeError

Indices = npt.NDArray[np.int64]
Split = tuple[Indices, Indices]
"""(rows to train on, rows to test on)."""
_LABELS: Final = "more rows need a label, or fewer folds will do (--folds, --inner-folds)"


class CannotSplit(ProbeError):  # noqa: N818 - named for what it says
    """Too few images or one class only; the message has the counts."""


def folds(
    groups: npt.NDArray[np.int64], wrong: npt.NDArray[np.bool_], n: int, seed: int
) -> list[Split]:
    """n splits; each row is tested in exactly one of them, each group on one side of each.

    groups: (N,), of each row. Shuffled by the seed, and the share of wrong rows is about the same
    in each. Both sides are ascending. Raises CannotSplit.
    """
    if n < 2:
        raise CannotSplit(f"expected at least 2 folds, got {n}")
    if (most := most_folds(groups, wrong)) < n:
        raise CannotSplit(
            f"{n} folds by image need wrong answers on {n} images and right ones on {n}: got "
            f"{_images(groups, wrong):,} and {_images(groups, ~wrong):,} of "
            f"{len(np.unique(groups)):,} images, {int(wrong.sum()):,} wrong of {len(wrong):,} "
            f"rows; {_LABELS if most > 1 else 'label more rows'}"
        )
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(n_splits=n, shuffle=True, random_state=seed)
    found = [
        (train.astype(np.int64), test.astype(np.int64))
        for train, test in splitter.split(np.zeros(len(wrong)), wrong, groups)
    ]
    check_folds(groups, wrong, found)
    return found


def most_folds(groups: npt.NDArray[np.int64], wrong: npt.NDArray[np.bool_]) -> int:
    """Into how many folds the rows can be split: images with wrong answers, or with right ones,
    whichever are fewer."""
    return min(_images(groups, wrong), _images(groups, ~wrong))


def check_folds(
    groups: npt.NDArray[np.int64], wrong: npt.NDArray[np.bool_], found: list[Split]
) -> None:
    """Whatever made them: raises CannotSplit where a group is on both sides, a row is not tested
    exactly once, or a training part has one class only."""
    tested = np.bincount(np.concatenate([test for _, test in found]), minlength=len(wrong))
    if (tested != 1).any():
        raise CannotSplit(
            f"expected each row in one test fold, got {int((tested != 1).sum())} that are not"
        )
    for number, (train, test) in enumerate(found):
        check_apart(groups[train], groups[test])
        if wrong[train].all() or not wrong[train].any():
            raise CannotSplit(
                f"fold {number}: the {len(train):,} training rows are all "
                f"{'wrong' if wrong[train].all() else 'right'}: too few images have both; {_LABELS}"
            )


def check_apart(trained: npt.NDArray[np.int64], tested: npt.NDArray[np.int64]) -> None:
    """Raises CannotSplit if an image is in both."""
    both = np.intersect1d(trained, tested)
    if len(both):
        raise CannotSplit(f"{len(both)} images are in the training and in the test rows")


def _images(groups: npt.NDArray[np.int64], which: npt.NDArray[np.bool_]) -> int:
    return len(np.unique(groups[which]))
