"""`write_report`: an evaluation to a folder: the page, its plots, its figures.

Knows where everything comes from; decides nothing.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from halp_probe.judging.verdict import Verdict
from halp_probe.report.examples import Examples, read_examples
from halp_probe.report.folder import FIGURES, PAGE, report_folder
from halp_probe.report.highlights import highlights_of
from halp_probe.report.page import About, page_of
from halp_probe.report.pictures import Pictures
from halp_probe.report.plots import draw_all
from halp_probe.results import Evaluation

if TYPE_CHECKING:
    from halp_store.view import View

_PACKAGES: Final = ("halp-stream", "numpy", "scikit-learn", "matplotlib")
_STEPS: Final = 4

Told = Callable[[int, int], None]
"""Is told (steps done, of how many)."""


def write_report(
    evaluation: Evaluation,
    store: View,
    verdicts: Mapping[str, Verdict],
    out: Path,
    *,
    image_root: Path | None,
    command: str,
    made: datetime,
    force: bool = False,
    told: Told | None = None,
) -> Path:
    """The page's path. Nothing is at `out` before all of it is written.

    verdicts: of the label table, question id -> verdict. image_root: None shows no picture.
    command: that makes the report again. made: in UTC.
    Raises OutputExists, OSError, or a StoreError for texts that cannot be read.
    """
    tell = told or (lambda done, total: None)
    with report_folder(out, force=force) as folder:
        highlights = highlights_of(evaluation)
        examples: Examples = {}
        if highlights is not None:
            pictures = Pictures(image_root)
            examples = read_examples(store, evaluation, highlights.best, verdicts, pictures)
        tell(1, _STEPS)
        plots = draw_all(evaluation, highlights)
        for one in plots:
            (folder / f"{one.name}.png").write_bytes(one.png)
        tell(2, _STEPS)
        page = page_of(evaluation, plots, examples, About(made, command, _versions()))
        # A half of a surrogate pair, which JSON may hold, is no text that a file could.
        (folder / PAGE).write_bytes(page.encode("utf-8", "replace"))
        tell(3, _STEPS)
        figures = json.dumps(evaluation.to_json(), indent=1, allow_nan=False, default=str)
        (folder / FIGURES).write_text(figures + "\n", encoding="utf-8")
        tell(_STEPS, _STEPS)
    return out / PAGE


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
