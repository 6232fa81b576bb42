"""`ProbeError`: what can be wrong with labels, probes and what is asked of them."""

from __future__ import annotations


class ProbeError(Exception):
    """What a user can mend: the message says what, where and how. Ends a command with code 1."""
