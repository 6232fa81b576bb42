"""`Columns`: which column of a record is which field of a job.

Knows the names of the published data set and what `--map` says; refuses to know values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "question_id": ("question_id",),
    "image": ("image", "image_name", "image_id"),
    "question": ("question",),
    "ground_truth": ("ground_truth", "ground_truth_answer", "gt_answer", "answer"),
    "metadata": ("metadata",),
}
"""Field -> the columns it is looked for in; the first that is there wins."""


@dataclass(frozen=True)
class Columns:
    """The columns of each field, first choice first. `mapped` replaces a field's own list."""

    mapped: Mapping[str, str] = field(default_factory=dict)
    _of: tuple[tuple[str, tuple[str, ...]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pairs = tuple(
            (name, (self.mapped[name],) if name in self.mapped else columns)
            for name, columns in ALIASES.items()
        )
        object.__setattr__(self, "_of", pairs)

    @classmethod
    def from_options(cls, options: Iterable[str]) -> Self:
        """From `field=column` texts. Raises ValueError that says what was expected."""
        mapped: dict[str, str] = {}
        for option in options:
            name, equals, column = option.partition("=")
            if not equals or not column or name not in ALIASES:
                raise ValueError(
                    f"{option!r}: expected field=column, with a field of {', '.join(ALIASES)}"
                )
            if name in mapped:
                raise ValueError(f"{option!r}: {name} is already mapped to {mapped[name]!r}")
            mapped[name] = column
        return cls(mapped)

    def of(self, name: str) -> tuple[str, ...]:
        """The columns that field `name` is looked for in."""
        return dict(self._of)[name]

    def missing(self, header: Collection[str]) -> list[tuple[str, str]]:
        """(field, reason) for each field that a table with this header cannot fill."""
        names = ", ".join(repr(one) for one in header)
        return [
            (name, f"is missing ({self.looked_for(name)}; the header has {names})")
            for name in ALIASES
            if (name != "metadata" or name in self.mapped)
            and not any(column in header for column in self.of(name))
        ]

    def looked_for(self, name: str) -> str:
        """`no column 'a'`, `no column 'a', 'b' or 'c'`."""
        *most, last = (repr(column) for column in self.of(name))
        source = f" (--map {name}={self.mapped[name]})" if name in self.mapped else ""
        return f"no column {', '.join(most)}{' or ' if most else ''}{last}{source}"

    def split(self, record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(fields, everything else) of one record. A null counts as absent, so the next name has
        its turn; a column that a field took, or passed over as null, is not in the rest."""
        fields: dict[str, Any] = {}
        rest = dict(record)
        for name, columns in self._of:
            for column in columns:
                if column in record:
                    rest.pop(column, None)
                    if (value := record[column]) is not None:
                        fields[name] = value
                        break
        return fields, rest
