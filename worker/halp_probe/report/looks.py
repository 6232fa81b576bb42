"""What the plots share: colours, letters, names. Okabe and Ito's colours are told apart by the
colour-blind, and in print.
"""

from __future__ import annotations

from typing import Any, Final

from halp_probe.report.wording import classifier, shown
from halp_probe.results import Entry

BLUE: Final = "#0072B2"
LIGHT_BLUE: Final = "#56B4E9"
ORANGE: Final = "#D55E00"
GREY: Final = "#5f6670"
_NAME: Final = 34
"""Characters of a name: more would leave no room for what is drawn."""
STYLE: Final[Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    # Twice what a screen shows, so that a page prints sharply.
    "savefig.dpi": 180,
    # A name comes from a data set: a dollar in it is a dollar.
    "text.parse_math": False,
}


def label(entry: Entry) -> str:
    how = "" if entry.classifier == "none" else f" · {short(classifier(entry.classifier))}"
    return f"{short(entry.name)}{how}"


def short(text: str) -> str:
    return shown(text, _NAME).replace("\n", " ")
