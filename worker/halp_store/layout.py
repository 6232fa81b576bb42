"""`Layout`: which columns a store has, their dimensions and types, and how they are named.

Pure values: no files here. Dimensions: N rows (dim `question`), L layers (dim `layer`),
D hidden size (dim `hidden`), V hidden size of the vision encoder (dim `vision_hidden`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

LAYOUT_VERSION: Final = 3
"""Version of new stores. Increase this number when an old reader could misread a new store, or an
old writer could write into it what a new reader refuses. Version 1 had no score columns, version 2
no store id and no stamps. A store keeps the version that it began with."""

READABLE_VERSIONS: Final = (1, 2, LAYOUT_VERSION)

TEXT_COLUMNS: Final = (
    "question_id",
    # Never `question`: xarray would take a variable named like its dimension for the index.
    "question_text",
    "image",
    "image_sha256",
    "ground_truth",
    "answer",
    "finish_reason",
    "metadata",
    "content_hash",
)
"""Text columns, dims (question). `metadata` is a JSON object; `content_hash` is the job's."""

COUNT_COLUMNS: Final = ("prompt_tokens", "image_tokens", "answer_tokens")
"""Integer columns, dims (question), int64, in tokens."""

GRID_COLUMN: Final = "image_grid_thw"
"""Integer column, dims (question, thw), int64: patches before the merge, (t, h, w)."""

SCORE_COLUMNS: Final = ("first_token_entropy", "mean_logprob", "risk")
"""Columns of one float32 a row, dims (question). Which of them a store has, its layout says.

first_token_entropy: of the distribution of the first answer token, in nats.
mean_logprob: mean natural logarithm of the probability of each token of the answer, its stop token
    with them; NaN where there is no answer.
risk: what a probe gave before the first token, in [0, 1].
"""

ANSWER_SCORES: Final = ("first_token_entropy", "mean_logprob")
"""Those that every worker stores."""

DEFAULT_POSITIONS: Final = ("vision_token", "query_token")


@dataclass(frozen=True)
class Layout:
    """What a store is made of; equal layouts may share a store.

    layers: decoder layer indices, ascending. The stored value of layer i is the residual stream
        after layer i, before the final norm (for the last layer too).
    positions: names of the token positions whose states are stored, one array each.
    hidden_size, vision_hidden_size: D and V.
    source_dtype: what the values were computed in ("bfloat16", "float32"); stored as float32.
    fingerprint: JSON object of everything that changes the numbers or the answers. What was
        imported has `imported` here, with the names of the columns that are `unknown`.
    scores: which of `SCORE_COLUMNS` there are, in that order; none in a store of version 1, and
        none where rows were imported.
    """

    layers: tuple[int, ...]
    positions: tuple[str, ...]
    hidden_size: int
    vision_hidden_size: int
    source_dtype: str
    fingerprint: Mapping[str, Any]
    scores: tuple[str, ...] = ()

    @property
    def unknown(self) -> frozenset[str]:
        """Columns that the source of imported rows did not have: vectors of this name are absent,
        integers are -1, texts are empty. None in a store of computed rows.
        """
        imported = self.fingerprint.get("imported")
        return frozenset(imported.get("unknown", ()) if isinstance(imported, Mapping) else ())

    def vector_columns(self) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """name -> (dims after `question`, their lengths), all float32; none that is unknown."""
        tokens = (("layer", "hidden"), (len(self.layers), self.hidden_size))
        columns: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
            "vision_only": (("hidden",), (self.hidden_size,)),
            "vision_encoder": (("vision_hidden",), (self.vision_hidden_size,)),
            **dict.fromkeys(self.positions, tokens),
        }
        unknown = self.unknown
        return {name: what for name, what in columns.items() if name not in unknown}

    def integer_columns(self) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """name -> (dims after `question`, their lengths), all int64.

        `<position>_position` is the token's index in the unpadded prompt.
        """
        scalar: tuple[tuple[str, ...], tuple[int, ...]] = ((), ())
        names = (*COUNT_COLUMNS, *(f"{position}_position" for position in self.positions))
        return {**dict.fromkeys(names, scalar), GRID_COLUMN: (("thw",), (3,))}

    def score_columns(self) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """name -> (dims after `question`, their lengths), all float32, one value a row."""
        return dict.fromkeys(self.scores, ((), ()))

    def number_columns(self) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """Integers, scores and vectors, in the order in which they are stored."""
        return {**self.integer_columns(), **self.score_columns(), **self.vector_columns()}

    def to_json(self) -> dict[str, Any]:
        """As attributes of the root. Inverse of `from_json`."""
        fields = dataclasses.asdict(self)
        if not self.scores:
            del fields["scores"]
        return fields

    @classmethod
    def from_json(cls, attributes: Mapping[str, Any]) -> Layout:
        """Raises ValueError, KeyError or TypeError for what is not whole."""
        layout = cls(
            layers=tuple(attributes["layers"]),
            positions=tuple(attributes["positions"]),
            hidden_size=attributes["hidden_size"],
            vision_hidden_size=attributes["vision_hidden_size"],
            source_dtype=attributes["source_dtype"],
            fingerprint=attributes["fingerprint"],
            scores=tuple(attributes.get("scores", ())),
        )
        known = tuple(name for name in SCORE_COLUMNS if name in layout.scores)
        if layout.scores != known:
            expected = f"some of {', '.join(SCORE_COLUMNS)}, in this order"
            raise ValueError(f"scores: expected {expected}, got {list(layout.scores)}")
        return layout
