"""`agreement`: how far two judges say the same of the answers that both of them judged.

Knows verdicts; refuses to know which of two judges is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from halp_probe.judging.verdict import Label
from halp_probe.labels import LabelTable

_SAYS: Final = (Label.RIGHT, Label.WRONG)
"""Of an answer. The other labels say that there is nothing to agree on."""


@dataclass(frozen=True)
class Agreement:
    """left, right: the tables, as `judge` or `judge version`.

    both: rows in both tables. judged: those that both call right or wrong. same: of these, those
    that both call alike. kappa: Cohen's, over `judged`; None where chance alone would agree on
    every row, as where both say the same one thing of all. counts: (left's label, right's label) ->
    rows, over `both`.
    """

    left: str
    right: str
    both: int
    judged: int
    same: int
    kappa: float | None
    counts: Mapping[tuple[Label, Label], int]

    @property
    def percent(self) -> float | None:
        """`same` of `judged`, 0 to 100; None without a row that both judged."""
        return 100 * self.same / self.judged if self.judged else None

    @property
    def sentence(self) -> str:
        """All of it, for people."""
        if self.percent is None:
            return (
                f"{self.left} and {self.right}: no answer is right or wrong to both "
                f"({self.both:,} rows in both tables)"
            )
        kappa = "not defined" if self.kappa is None else f"{self.kappa:.3f}"
        return (
            f"{self.left} and {self.right} agree on {self.same:,} of {self.judged:,} answers that "
            f"both judged ({self.percent:.1f} %, Cohen's kappa {kappa})"
        )

    def to_json(self) -> dict[str, Any]:
        """counts: left's label -> right's label -> rows."""
        counts: dict[str, dict[str, int]] = {}
        for (left, right), rows in self.counts.items():
            counts.setdefault(str(left), {})[str(right)] = rows
        return {
            "left": self.left,
            "right": self.right,
            "both": self.both,
            "judged": self.judged,
            "same": self.same,
            "percent": self.percent,
            "kappa": self.kappa,
            "counts": counts,
        }


def agreement(left: LabelTable, right: LabelTable) -> Agreement:
    """Of two tables of one store."""
    shared = [one for one in left.verdicts if one in right.verdicts]
    pairs = Counter((left.verdicts[one].label, right.verdicts[one].label) for one in shared)
    counts = {
        (one, other): pairs[one, other] for one in Label for other in Label if pairs[one, other]
    }
    judged = sum(pairs[one, other] for one in _SAYS for other in _SAYS)
    same = sum(pairs[one, one] for one in _SAYS)
    is_one = left.judge == right.judge
    return Agreement(
        left=f"{left.judge} {left.version}" if is_one else left.judge,
        right=f"{right.judge} {right.version}" if is_one else right.judge,
        both=len(shared),
        judged=judged,
        same=same,
        kappa=_kappa(pairs, judged, same),
        counts=counts,
    )


def disagreements(left: LabelTable, right: LabelTable) -> tuple[str, ...]:
    """Ids of answers that one judge calls right and the other wrong, in the order of `left`."""
    return tuple(
        one
        for one, verdict in left.verdicts.items()
        if one in right.verdicts
        and {verdict.label, right.verdicts[one].label} == {Label.RIGHT, Label.WRONG}
    )


def _kappa(pairs: Counter[tuple[Label, Label]], judged: int, same: int) -> float | None:
    """Cohen (1960): (observed - by chance) / (1 - by chance), in whole numbers up to the end."""
    by_chance = sum(
        sum(pairs[one, other] for other in _SAYS) * sum(pairs[other, one] for other in _SAYS)
        for one in _SAYS
    )
    if by_chance == judged**2:
        return None
    return (same * judged - by_chance) / (judged**2 - by_chance)
