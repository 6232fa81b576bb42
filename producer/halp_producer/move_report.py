"""`MoveReport`: how many questions a command moved, which it did not, and why."""

from __future__ import annotations

from typing import Final

import typer
from pydantic import BaseModel

from halp_producer.console import print_json
from halp_producer.moves import Move
from halp_producer.problem import printable

OF_LETTERS: Final = {
    Move.GONE: "is not among the failed any more: something else moved it meanwhile",
    Move.ON_THE_STREAM: "is on the stream already: its letter is one too many, "
    "`halp-producer failed drop` removes it and nothing else",
    Move.EMPTY: "its letter holds nothing of a job that could be put back; "
    "`halp-producer failed drop` removes it",
    Move.UNKNOWN: "no failed question or letter has this id",
}
OF_JOBS: Final = {
    Move.GONE: "is done or failed: nothing to cancel",
    Move.UNKNOWN: "was never enqueued in this run",
}


class LeftOut(BaseModel):
    """One that was not moved. `text` is `why` as a sentence without its subject."""

    id: str
    why: Move
    text: str


class MoveReport(BaseModel):
    """Filled as a command goes. moved: questions; left_out: those that could not be."""

    run: str
    moved: int = 0
    left_out: list[LeftOut] = []

    def note(self, name: str, move: Move, texts: dict[Move, str]) -> None:
        """What became of one."""
        if move is Move.MOVED:
            self.moved += 1
        else:
            self.left_out.append(LeftOut(id=name, why=move, text=texts[move]))

    def resume(self) -> str:
        """For a command that was cut short."""
        return f"{self.moved:,} moved before that; the same command goes on where this one stopped"

    def finish(self, deed: str, as_json: bool) -> None:
        """Prints what was done and what was not; exit code 1 for the latter."""
        for one in self.left_out:
            typer.echo(printable(f"{one.id}: {one.text}"), err=True)
        if as_json:
            print_json(self)
        else:
            rest = f", {len(self.left_out):,} not" if self.left_out else ""
            typer.echo(f"run {self.run}: {self.moved:,} {deed}{rest}")
        if self.left_out:
            raise typer.Exit(1)


def require_one_way(options: str, *ways: object) -> None:
    """A usage error unless exactly one of the ways to choose was taken."""
    if sum(map(bool, ways)) != 1:
        raise typer.BadParameter(f"give exactly one of: ids, {options}")
