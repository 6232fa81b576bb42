"""`Process`: a program that a test starts, and that never outlives the test's patience."""

from __future__ import annotations

import subprocess
from typing import Any


class Process(subprocess.Popen):
    """As a block, it is killed where an error leaves the block. `Popen` would wait for its end: for
    ever, where the error is the test's timeout."""

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, *rest)
