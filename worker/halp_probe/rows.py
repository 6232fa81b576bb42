"""`Rows`: what a probe may learn from: the rows of a store that are labelled right or wrong.

Knows texts, labels and scores of rows; refuses to know their vectors, and who judged them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from halp_probe.errors import ProbeError
from halp_probe.judging.verdict import Label, Verdict
from halp_probe.results import Counts

if TYPE_CHECKING:
    from halp_store.view import View

KIND_FIELDS: Final = ("kind", "category")
SOURCE_FIELDS: Final = ("dataset", "source")
"""Of the metadata: taken without being asked for, where every labelled row has them."""
ONE_SOURCE: Final = "all"
UNLABELLED: Final = "unlabelled"
"""In `Counts.labels`: rows that came after the label table."""
# More is a name of each row, not a kind of them: no table could show it.
_MOST_VALUES: Final = 50


class NoRows(ProbeError):  # noqa: N818 - named for what it says
    """Nothing to learn from; the message says what there is, and what to do."""


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows in order of id.

    wrong: bool (N,), the positive class. images: of each row, its group: the content's sha256, or
        the path where that is unknown. groups: int64 (N,), the same as numbers.
    kinds, sources: of each row. kind_field, source_field: the metadata's key they are from; None
        for the judge's kind, and for the one source `all`.
    answer_lengths: float32 (N,), in `length_unit`.
    scores: column -> float32 (N,), NaN where a row has none.
    """

    ids: tuple[str, ...]
    wrong: npt.NDArray[np.bool_]
    images: tuple[str, ...]
    groups: npt.NDArray[np.int64]
    kinds: tuple[str, ...]
    sources: tuple[str, ...]
    questions: tuple[str, ...]
    answer_lengths: npt.NDArray[np.float32]
    length_unit: str
    scores: Mapping[str, npt.NDArray[np.float32]]
    counts: Counts
    kind_field: str | None = None
    source_field: str | None = None

    def __len__(self) -> int:
        return len(self.ids)


def load_rows(
    store: View,
    verdicts: Mapping[str, Verdict],
    *,
    kind_field: str | None = None,
    source_field: str | None = None,
) -> Rows:
    """Those of a label table: its `verdicts`, question id -> verdict.

    kind_field, source_field: keys of the metadata, which every labelled row has to have.
    Raises NoRows, ProbeError or DamagedSegment.
    """
    found = [verdicts.get(one) for one in store.ids]
    labels = Counter(UNLABELLED if one is None else str(one.label) for one in found)
    taken = [
        row
        for row, one in enumerate(found)
        if one is not None and one.label in {Label.RIGHT, Label.WRONG}
    ]
    if not taken:
        said = ", ".join(f"{count:,} {name}" for name, count in sorted(labels.items()))
        raise NoRows(
            f"{store.path}: no row is labelled right or wrong ({said or 'the store is empty'}); "
            "label it with a judge that can tell: halp-probe label STORE --judge auto"
        )
    view = store[[store.ids[row] for row in taken]]
    given = [one for one in found if one is not None and one.label in {Label.RIGHT, Label.WRONG}]
    texts = view.read(["question_text", "image", "image_sha256", "answer", "metadata"])
    metadata = [_object(one) for one in texts["metadata"]]
    kinds, kind_field = _values(metadata, kind_field, KIND_FIELDS, "--kind-field")
    sources, source_field = _values(metadata, source_field, SOURCE_FIELDS, "--source-field")
    kinds = kinds or tuple(str(one.kind) for one in given)
    sources = sources or (ONE_SOURCE,) * len(given)
    wrong = np.array([one.label is Label.WRONG for one in given])
    images = images_of(texts["image_sha256"].tolist(), texts["image"].tolist(), store.path)
    groups = np.unique(np.array(images, dtype=object), return_inverse=True)[1].astype(np.int64)
    lengths, unit = _lengths(view, texts["answer"].tolist())
    return Rows(
        ids=view.ids,
        wrong=wrong,
        images=images,
        groups=groups,
        kinds=kinds,
        sources=sources,
        questions=tuple(texts["question_text"].tolist()),
        answer_lengths=lengths,
        length_unit=unit,
        scores=dict(view.read(view.layout.scores)) if view.layout.scores else {},
        counts=Counts(
            stored=len(store),
            labels=dict(labels),
            rows=len(taken),
            wrong=int(wrong.sum()),
            images=int(groups.max()) + 1,
            kinds=_by(kinds, wrong),
            sources=_by(sources, wrong),
        ),
        kind_field=kind_field,
        source_field=source_field,
    )


def images_of(hashes: Sequence[str], paths: Sequence[str], where: str) -> tuple[str, ...]:
    """The group of each row: its image's sha256, or else its path. A path whose content another
    row knows is that content. Raises ProbeError for rows that have neither."""
    known = {path: one for path, one in zip(paths, hashes, strict=True) if path and one}
    found = tuple(one or known.get(path, path) for path, one in zip(paths, hashes, strict=True))
    if lacking := sum(not one for one in found):
        raise ProbeError(
            f"{where}: {lacking:,} of {len(found):,} labelled rows have neither an image's path "
            "nor its sha256: no split by image can be made of them; import them with their images"
        )
    return found


def _values(
    metadata: Sequence[Mapping[str, Any]],
    wanted: str | None,
    usual: Sequence[str],
    option: str,
) -> tuple[tuple[str, ...], str | None]:
    """Of the wanted key, or the first of the usual ones that serves; nothing where none does."""
    for name in usual if wanted is None else (wanted.removeprefix("metadata."),):
        values = tuple(_text(one.get(name)) for one in metadata)
        lacking, distinct = sum(not one for one in values), len(set(values))
        if not lacking and distinct <= _MOST_VALUES:
            return values, name
        if wanted is not None:
            names = sorted({key for one in metadata for key in one})
            what = (
                f"{lacking:,} of {len(values):,} labelled rows have none"
                if lacking
                else f"it has {distinct:,} values, expected at most {_MOST_VALUES}"
            )
            raise ProbeError(
                f"{option} {wanted}: {what}; the metadata has {', '.join(names) or 'nothing'}"
            )
    return (), None


def _text(value: Any) -> str:
    if isinstance(value, bool | list | dict) or value is None:
        return ""
    return str(value)


def _object(text: str) -> Mapping[str, Any]:
    """The worker stores a JSON object; an import may have had none."""
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {}


def _lengths(view: View, answers: Sequence[str]) -> tuple[npt.NDArray[np.float32], str]:
    tokens = view.integers("answer_tokens")
    if (tokens >= 0).all():
        return tokens.astype(np.float32), "tokens"
    return np.array([len(one.split()) for one in answers], np.float32), "words"


def _by(names: Sequence[str], wrong: npt.NDArray[np.bool_]) -> dict[str, tuple[int, int]]:
    rows = Counter(names)
    bad = Counter(name for name, one in zip(names, wrong.tolist(), strict=True) if one)
    return {name: (rows[name], bad[name]) for name in sorted(rows)}
