"""`halp-probe`: labels, probes and reports from a terminal. Each command has a file of its own.

Exit codes: 0 done, 1 it cannot be done and a sentence says why, 2 the command line is wrong.
"""

from __future__ import annotations

import typer

from halp_probe import (
    cli_evaluate,
    cli_fit,
    cli_label,
    cli_labels,
    cli_published,
    cli_report,
    cli_score,
)

app = typer.Typer(
    name="halp-probe",
    help="Say which answers are wrong, and predict it from hidden states.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(epilog=cli_label.EXAMPLES)(cli_label.label)
app.command(epilog=cli_labels.LABELS_EXAMPLES)(cli_labels.labels)
app.command(epilog=cli_labels.AGREEMENT_EXAMPLES)(cli_labels.agreement)
app.command(epilog=cli_evaluate.EXAMPLES)(cli_evaluate.evaluate)
app.command(epilog=cli_fit.EXAMPLES)(cli_fit.fit)
app.command(epilog=cli_score.SCORE_EXAMPLES)(cli_score.score)
app.command(epilog=cli_score.SHOW_EXAMPLES)(cli_score.show)
app.command(epilog=cli_published.EXAMPLES)(cli_published.published)
app.command(epilog=cli_report.EXAMPLES)(cli_report.report)


def main() -> None:
    """Entry point of the console script."""
    app()
