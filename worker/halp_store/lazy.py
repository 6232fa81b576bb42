"""`to_xarray`: a View as an xarray Dataset whose values are read when they are asked for.

Through xarray's documented interface for backends, so it needs no dask and works with it, in
threads and in processes. Importing this costs nothing: xarray comes with the first Dataset.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import xarray

    from halp_store.view import View


def to_xarray(view: View, names: Sequence[str]) -> xarray.Dataset:
    """See `View.to_xarray`. view: one that does not change."""
    try:
        import xarray
        from xarray.core.indexing import LazilyIndexedArray
    except ImportError as error:
        hint = "to_xarray needs xarray: pip install 'halp-stream[store]'"
        raise ImportError(hint) from error
    layout = view.layout
    dims = {name: found for name, (found, _) in layout.number_columns().items()}
    data = {
        name: (("question", *dims.get(name, ())), LazilyIndexedArray(_column(view, name)))
        for name in names
        if name != "question_id"
    }
    coordinates = {
        "question_id": (("question",), np.array(view.ids, dtype=object)),
        "layer": (("layer",), np.array(view.layers, dtype=np.int64)),
    }
    attributes = {
        "source_dtype": layout.source_dtype,
        "fingerprint": json.dumps(layout.fingerprint, ensure_ascii=False),
    }
    return xarray.Dataset(data, coordinates, attributes)


def _column(view: View, name: str) -> Any:
    return _column_type()(view, name)


@functools.cache
def _column_type() -> type[Any]:
    """A class of xarray's, made when it is wanted: importing xarray costs half a second."""
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Column(BackendArray):
        """One column of a view. Values are read by indexing and not kept."""

        def __init__(self, view: View, name: str) -> None:
            self._view, self._name = view, name
            self.dtype, shape = view._kind(name)
            self.shape = (len(view), *shape)

        def __reduce__(self) -> tuple[Any, tuple[View, str]]:
            return _column, (self._view, self._name)

        def __deepcopy__(self, memo: object) -> Column:
            return self  # nothing in it changes

        def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
            support = indexing.IndexingSupport.OUTER
            return indexing.explicit_indexing_adapter(key, self.shape, support, self._outer)

        def _outer(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
            """key: an int, a slice or an array of ints for each axis."""
            has_layers = self._name in self._view.positions
            read = 2 if has_layers else 1
            axes = [
                np.atleast_1d(np.arange(size)[one])
                for size, one in zip(self.shape[:read], key[:read], strict=True)
            ]
            layers = axes[1].tolist() if has_layers else None
            values = self._view._read([self._name], axes[0], layers)[self._name]
            for axis, one in reversed(list(enumerate(key))):
                if axis >= read or isinstance(one, int | np.integer):
                    place = 0 if axis < read else one
                    values = values[(*(slice(None),) * axis, place)]
            return values

    return Column
