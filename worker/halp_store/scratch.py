"""`ScratchColumn`: a column on disk whose rows come in any order and leave in order.

Two planes of 16 bits: values that were computed in bfloat16 have zeros in the lower one, which is
then a hole in a file and costs no disk. The files have no name, so nothing is left after a kill.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from halp_store.disk_faults import remedy_for
from halp_store.errors import StoreUnavailable

_HALF: Final = np.dtype(np.uint16)


class ScratchColumn:
    """`rows` rows of `width` float32, zeros at first. A context manager."""

    def __init__(self, folder: Path, rows: int, width: int) -> None:
        self._folder = folder
        self._width, self._row_bytes = width, width * _HALF.itemsize
        try:
            self._planes = [
                tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed when this is left
                for _ in range(2)
            ]
            for plane in self._planes:
                os.ftruncate(plane.fileno(), rows * self._row_bytes)
        except OSError as error:
            raise _unavailable(self._folder, error) from error
        self._has_lower = False
        self._half = np.empty((0, width), _HALF)
        self._whole = np.zeros((0, width, 2), _HALF)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for plane in self._planes:
            plane.close()

    def put(self, rows: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        """values: (len(rows), width), contiguous. May be called from several threads."""
        halves = values.view(_HALF).reshape(len(rows), self._width, 2)
        self._write(1, rows, np.ascontiguousarray(halves[..., 1]))
        if halves[..., 0].any():
            self._has_lower = True
            self._write(0, rows, np.ascontiguousarray(halves[..., 0]))

    def take(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """(stop - start, width): the same memory at each call, valid until the next one."""
        rows = stop - start
        if len(self._half) < rows:
            self._half = np.empty((rows, self._width), _HALF)
            self._whole = np.zeros((rows, self._width, 2), _HALF)
        half, whole = self._half[:rows], self._whole[:rows]
        for number, plane in enumerate(self._planes):
            if number == 1 or self._has_lower:
                self._read(plane.fileno(), half, start * self._row_bytes)
                whole[..., number] = half
        return whole.view(np.float32)[..., 0]

    def _read(self, descriptor: int, half: npt.NDArray[np.uint16], offset: int) -> None:
        rest = half.reshape(-1).view(np.uint8).data
        while rest:  # one call gives 2 GiB at most
            try:
                count = os.preadv(descriptor, [rest], offset)
            except OSError as error:
                raise _unavailable(self._folder, error) from error
            if count == 0:
                raise _unavailable(
                    self._folder, OSError(errno.EIO, "the scratch file became shorter")
                )
            rest, offset = rest[count:], offset + count

    def _write(
        self, half: int, rows: npt.NDArray[np.int64], values: npt.NDArray[np.uint16]
    ) -> None:
        descriptor = self._planes[half].fileno()
        for row, value in zip(rows.tolist(), values, strict=True):
            try:
                count = os.pwrite(descriptor, value.data, row * self._row_bytes)
            except OSError as error:
                raise _unavailable(self._folder, error) from error
            if count != self._row_bytes:
                raise _unavailable(self._folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def free_bytes(folder: Path) -> int:
    """How much there is for scratch files. Raises StoreUnavailable."""
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise _unavailable(folder, error) from error


def _unavailable(folder: Path, error: OSError) -> StoreUnavailable:
    remedy = f"{remedy_for(error, folder)}; or give a folder elsewhere with --scratch"
    return StoreUnavailable(str(folder), "sort a column", error, remedy)
