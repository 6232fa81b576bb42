"""The store room: `open_store(path)` reads what the workers have committed.

Importing this package costs nothing; numpy and zarr come with the first name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from halp_store.compaction import Compaction, compact
    from halp_store.delete import Deletion, delete_rows
    from halp_store.errors import DamagedSegment, NotAStore, StoreError
    from halp_store.features import FeatureBatch, Receipt, RowKey
    from halp_store.layout import Layout
    from halp_store.pruning import Pruning, prune
    from halp_store.reader import Store, open_store
    from halp_store.record import Record
    from halp_store.verification import Verification
    from halp_store.verify import verify_store
    from halp_store.view import View
    from halp_store.writer import Flush, StoreWriter

__all__ = [
    "Compaction",
    "DamagedSegment",
    "Deletion",
    "FeatureBatch",
    "Flush",
    "Layout",
    "NotAStore",
    "Pruning",
    "Receipt",
    "Record",
    "RowKey",
    "Store",
    "StoreError",
    "StoreWriter",
    "Verification",
    "View",
    "compact",
    "delete_rows",
    "open_store",
    "prune",
    "verify_store",
]

_HOMES: Final = {
    "Compaction": "compaction",
    "DamagedSegment": "errors",
    "Deletion": "delete",
    "FeatureBatch": "features",
    "Flush": "writer",
    "Layout": "layout",
    "NotAStore": "errors",
    "Pruning": "pruning",
    "Receipt": "features",
    "Record": "record",
    "RowKey": "features",
    "Store": "reader",
    "StoreError": "errors",
    "StoreWriter": "writer",
    "Verification": "verification",
    "View": "view",
    "compact": "compaction",
    "delete_rows": "delete",
    "open_store": "reader",
    "prune": "pruning",
    "verify_store": "verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
