"""How much memory this process takes, where no device says it better."""

from __future__ import annotations

import resource
import sys


def peak_resident_bytes() -> int:
    """The most that was resident since the process started."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
