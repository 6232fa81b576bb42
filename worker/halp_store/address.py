"""Where a store is: a path of this machine, or the URL of a bucket.

`s3://`, `gs://` and `az://` need the extra `remote`; credentials come from the usual environment
and profile, never from the address.
"""

from __future__ import annotations

import os

from halp_store.local import LocalStorage
from halp_store.storage import Storage


def storage_at(address: str | os.PathLike[str]) -> Storage:
    """A directory for a path; nothing is made or looked at."""
    return LocalStorage(address)
