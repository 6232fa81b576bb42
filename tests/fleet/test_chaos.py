"""A whole run under random faults: every id stored exactly once, or failed for its own reason.

`make chaos` does this with many seeds; here it is one for each server.
"""

from __future__ import annotations

import os

import pytest
from chaos import run_chaos
from chaos_server import SERVERS, NotHere

SECONDS = float(os.environ.get("HALP_CHAOS_SECONDS", "60"))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 180)
@pytest.mark.parametrize("name", SERVERS)
def test_nothing_is_lost_doubled_or_miscounted_in_a_storm(name):
    """Kills, pauses, restarts, full servers, poison jobs; the books balance at every instant."""
    try:
        outcome = run_chaos(SERVERS.index(name) + 1, name, SECONDS)
    except NotHere as error:
        pytest.skip(f"{name}: {error}")
    print(outcome)
    assert outcome.ok, "\n".join(
        [str(outcome), f"kept: {outcome.folder}", *outcome.verdict.problems]
    )
