"""`Listener`: what an intake tells while it happens, and `Silence`, which keeps it to itself."""

from __future__ import annotations

from typing import Protocol

from halp_producer.problem import LineProblem


class Listener(Protocol):
    """Is told what happens while it happens."""

    def phase(self, name: str, total_bytes: int) -> None:
        """A pass over the file begins."""

    def progress(self, bytes_read: int, records: int) -> None:
        """How far this pass is; called often."""

    def problem(self, problem: LineProblem) -> None:
        """A bad line, or a conflict."""

    def note(self, text: str) -> None:
        """Something a person wants to know now, such as what is being waited for."""


class Silence:
    """A listener that keeps it to itself."""

    def phase(self, name: str, total_bytes: int) -> None: ...
    def progress(self, bytes_read: int, records: int) -> None: ...
    def problem(self, problem: LineProblem) -> None: ...
    def note(self, text: str) -> None: ...
