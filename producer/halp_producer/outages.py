"""What the server says of itself for a while, and what it says when it has forgotten the run."""

from __future__ import annotations

from typing import Final

import redis

_FOR_A_WHILE: Final = (
    redis.ConnectionError,  # also while it is loading
    redis.TimeoutError,
    redis.OutOfMemoryError,
    redis.ReadOnlyError,  # a failover under way: it was the primary a moment ago
    redis.exceptions.ClusterDownError,  # also of a replica without its primary
    redis.exceptions.TryAgainError,
    redis.exceptions.NoScriptError,  # forgotten between being loaded and being called
)
"""redis-py takes the code of these off the text."""

_FOR_A_WHILE_CODES: Final = (
    "MISCONF",  # it cannot write its file at the moment
    "NOREPLICAS",  # too few replicas are connected
    "BUSY",  # somebody's script takes long
)

_FORGOTTEN: Final = ("NOGROUP", "UNBLOCKED")
"""After FLUSHALL or a failover: 7.0 says UNBLOCKED to a blocked read, later ones NOGROUP."""

_FOR_GOOD: Final = (redis.AuthenticationError, redis.exceptions.AuthorizationError)
"""Connection errors by descent, that no waiting mends."""


def is_outage(error: Exception) -> bool:
    """Whether the server is away, loading, full or read-only: the same request may work later."""
    if isinstance(error, _FOR_GOOD):
        return False
    return isinstance(error, _FOR_A_WHILE) or str(error).startswith(_FOR_A_WHILE_CODES)


def is_forgotten(error: Exception) -> bool:
    """Whether the stream or its group is gone: it must be made again."""
    return str(error).startswith(_FORGOTTEN)
