"""`as_torch_dataset`: rows of a View as tensors, for a DataLoader.

The only module of the store that knows torch, which comes with the first data set.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch.utils.data

    from halp_store.view import View


def as_torch_dataset(
    view: View, names: Sequence[str], layers: Sequence[int] | None, in_memory: bool
) -> torch.utils.data.Dataset[dict[str, Any]]:
    """See `View.as_torch_dataset`. view: one that does not change. layers: along the layer axis."""
    try:
        kind = _dataset_type()
    except ImportError as error:
        raise ImportError("as_torch_dataset needs torch: pip install torch") from error
    kept = _as_tensors(view._read(names, None, layers)) if in_memory else None
    dataset: torch.utils.data.Dataset[dict[str, Any]] = kind(view, names, layers, kept)
    return dataset


def _as_tensors(columns: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Memory is shared. Strings, which torch has not, are a list."""
    import torch

    return {
        name: column.tolist() if column.dtype.kind == "O" else torch.from_numpy(column)
        for name, column in columns.items()
    }


def _dataset(*arguments: Any) -> Any:
    return _dataset_type()(*arguments)


@functools.cache
def _dataset_type() -> type[Any]:
    """A class of torch's, made when it is wanted: importing torch costs seconds."""
    from torch.utils.data import Dataset

    class Rows(Dataset[dict[str, Any]]):
        """kept: the columns, if they are in memory; tensors go to worker processes by reference."""

        def __init__(
            self,
            view: View,
            names: Sequence[str],
            layers: Sequence[int] | None,
            kept: dict[str, Any] | None,
        ) -> None:
            self._view, self._names, self._layers, self._kept = view, names, layers, kept

        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return _dataset, (self._view, self._names, self._layers, self._kept)

        def __len__(self) -> int:
            return len(self._view)

        def __getitem__(self, row: int) -> dict[str, Any]:
            return self.__getitems__([row])[0]

        def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
            """What a DataLoader asks for: a batch at once."""
            count = len(self)
            for row in rows:
                if not -count <= row < count:
                    raise IndexError(f"row {row} of {count}")
            wanted = np.array(rows, np.int64) % max(count, 1)
            columns, inside = self._kept, wanted.tolist()
            if columns is None:
                columns = _as_tensors(self._view._read(self._names, wanted, self._layers))
                inside = range(len(wanted))
            return [{name: column[row] for name, column in columns.items()} for row in inside]

    return Rows
