"""`fleet`: one run, one store, and as many worker processes as a test starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

sys.path.insert(0, str(Path(__file__).parent))  # the worker processes import `stand_in` by name

from fleet import Fleet, Gate


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Closed."""
    return Gate(tmp_path / "gate")


@pytest.fixture
def fleet(server: Any, client: redis.Redis, run: str, tmp_path: Path) -> Iterator[Fleet]:
    one = Fleet(server.url, client, run, tmp_path)
    yield one
    one.end()
