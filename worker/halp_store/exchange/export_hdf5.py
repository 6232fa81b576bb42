"""HDF5: exactly the published layout, so that scripts for it run unchanged.

`vision_only_representation` is `vision_encoder` where nothing else is said: the published numbers
are means before the merger. `vision_token_representation` is `vision_token`, the last token of the
image: what its name says. The published scripts took another token, which a store only has as
`halp_reference` if it was asked for; it has to be asked for here, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from halp_store.exchange.export import ExportError, Progress, Published
from halp_store.exchange.published_hdf5 import (
    QUERY_TOKEN,
    VISION,
    VISION_TOKEN,
    PublishedRow,
    PublishedWriter,
    is_group_name,
    is_text,
)
from halp_store.exchange.selection import Chosen, SelectionError
from halp_store.view import View

SOURCES: Final = "sources"
"""In the origin of a file: field of the layout -> the column that it was."""

_TEXTS: Final[Mapping[str, str]] = {
    "question": "question_text",
    "image_id": "image",
    "ground_truth_answer": "ground_truth",
    "answer": "answer",
}
# Of many ids that HDF5 cannot hold, the first show what is wrong.
_NAMED: Final = 5


@dataclass(frozen=True)
class HDF5Export:
    """sources: field of the published layout -> column of the store."""

    sources: Mapping[str, str]

    @classmethod
    def of(cls, store: View, published: Published) -> HDF5Export:
        vectors = store.layout.vector_columns()
        vision = "vision_encoder" if "vision_encoder" in vectors else "vision_only"
        tokens = "vision_token" if "vision_token" in vectors else "halp_reference"
        return cls(
            {
                **_TEXTS,
                VISION: published.vision or vision,
                VISION_TOKEN: published.vision_token or tokens,
                QUERY_TOKEN: "query_token",
            }
        )

    @property
    def usual(self) -> tuple[str, ...]:
        """The columns of the whole layout."""
        return tuple(self.sources.values())

    def write(
        self, path: Path, chosen: Chosen, origin: Mapping[str, Any], progress: Progress
    ) -> None:
        """Raises SelectionError for a column that the layout has no place for, ExportError for
        ids and texts that HDF5 cannot hold.
        """
        self._check_columns(chosen)
        _check_ids(chosen)
        _check_texts(chosen)
        taken = {name: column for name, column in self.sources.items() if column in chosen.columns}
        with PublishedWriter(path, {**origin, SOURCES: taken}) as file:
            done = 0
            for batch in chosen.in_any_order(chosen.columns):  # readers see groups sorted by name
                for row in _rows(batch, taken, chosen):
                    file.write(row)
                done += len(batch["question_id"])
                progress(done, len(chosen))

    def _check_columns(self, chosen: Chosen) -> None:
        if other := [name for name in chosen.columns if name not in self.usual]:
            raise SelectionError(
                f"hdf5: the published layout has no place for {', '.join(other)}; it takes "
                f"{', '.join(self.usual)} (--vision and --vision-token choose the source of "
                "two fields); other formats take all columns"
            )


def _rows(
    batch: Mapping[str, npt.NDArray[Any]],
    taken: Mapping[str, str],
    chosen: Chosen,
) -> Iterator[PublishedRow]:
    texts = {name: batch[column] for name, column in taken.items() if name in _TEXTS}
    vision = batch[taken[VISION]] if VISION in taken else None
    tokens = {name: batch[taken[name]] for name in (VISION_TOKEN, QUERY_TOKEN) if name in taken}
    for row, question_id in enumerate(batch["question_id"].tolist()):
        yield PublishedRow(
            question_id,
            {name: values[row] for name, values in texts.items()},
            None if vision is None else vision[row],
            {
                name: dict(zip(chosen.layers, values[row], strict=True))
                for name, values in tokens.items()
            },
        )


def _check_ids(chosen: Chosen) -> None:
    wrong = [one for one in chosen.view.ids if not is_group_name(one)]
    if wrong:
        some = ", ".join(map(repr, wrong[:_NAMED]))
        raise ExportError(
            f"hdf5: {len(wrong):,} ids cannot be the name of one group (they are empty, '.', or "
            f"hold '/' or a NUL character): {some}; leave them out with --ids, or use another "
            "format"
        )


def _check_texts(chosen: Chosen) -> None:
    """Before anything is written: it is a small part of what is to be read."""
    if not chosen.text:
        return
    wrong = [
        f"{column} of {chosen.view.ids[start + row]!r}"
        for start, batch in chosen.batches(chosen.text)
        for column, values in batch.items()
        for row, value in enumerate(values)
        if not is_text(value)
    ]
    if wrong:
        some = ", ".join(wrong[:_NAMED])
        raise ExportError(
            f"hdf5: {len(wrong):,} texts hold a NUL character, which HDF5 cannot: {some}; "
            "leave these rows out with --ids, or use another format"
        )
