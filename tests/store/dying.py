"""`DyingStorage`: a folder whose process is killed at a change of the disk."""

import os
import signal
import threading

from halp_store.local import LocalStorage


class DyingStorage(LocalStorage):
    """Kills its own process at the n-th change of the disk: 2k before the k-th, 2k + 1 after it."""

    def __init__(self, root, point):
        super().__init__(root)
        self._left, self._lock = point, threading.Lock()

    def _die_or(self, operation, *arguments):
        with self._lock:
            point, self._left = self._left, self._left - 2
        if point == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = operation(*arguments)
        if point == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    def sync(self, prefixes):
        return self._die_or(super().sync, prefixes)

    def publish(self, key, value):
        return self._die_or(super().publish, key, value)
