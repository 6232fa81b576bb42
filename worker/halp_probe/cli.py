"""`halp-probe`: labels, probes and reports from a terminal. Each command has a file of its own.

Exit codes: 0 done, 1 it cannot be done and a sentence says why, 2 the command line is wrong.
"""

from __future__ import annotations

import typer

app = typer.Typer(
    name="halp-probe",
    help="Say which answers are wrong, and predict it from hidden states.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Entry point of the console script."""
    app()
