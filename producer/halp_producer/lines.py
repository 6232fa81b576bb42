"""`Lines`: the numbered lines of a text file, gzipped or not, each within a bound.

Knows bytes, gzip and line ends; refuses to know records and encodings beyond the byte order mark.
A bad stretch of the file is a `LineError` from `next()`, after which iteration may go on. After a
pass, `seek` reads any part again.
"""

from __future__ import annotations

import gzip
import io
import stat
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self, cast

from halp_producer.problem import DatasetError
from halp_producer.scratch import ScratchError, room_needed, scratch_file

MAX_LINE_BYTES: Final = 16 << 20
"""Above any job (three texts and metadata of 1 MiB, escaped), far below what would fill memory."""

_BUFFER_BYTES: Final = 1 << 20
"""Read size; larger ones were not faster."""

_SEEKING_BUFFER_BYTES: Final = 8 << 10
"""The same where lines are read in any order: each seek reads as much."""

_GZIP: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"


class LineError(Exception):
    """A line that cannot be handed out; `line` is its number."""

    def __init__(self, line: int, reason: str) -> None:
        self.line, self.reason = line, reason
        super().__init__(reason)


class Fingerprint(NamedTuple):
    """Equal fingerprints of one path: most likely nobody wrote to the file in between."""

    size: int
    mtime_ns: int
    inode: int
    device: int


def fingerprint(path: Path) -> Fingerprint:
    """Of the regular file at `path`. Raises DatasetError when there is none."""
    try:
        found = path.stat()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise DatasetError(f"{path}: expected a regular file (it is read twice)")
    return Fingerprint(found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)


def require_unchanged(path: Path, before: Fingerprint) -> None:
    """Raises DatasetError when somebody wrote to the file."""
    if fingerprint(path) != before:
        raise changed(path)


def changed(path: Path, *found: object) -> DatasetError:
    """The error for a file that somebody wrote to, or for one of its images. found: what is wrong
    by now."""
    what = "; ".join(map(str, found or (path,)))
    return DatasetError(
        f"{what}: changed while it was being read; run the same command again when "
        "nobody writes to it (what is already enqueued will not be added twice)"
    )


class Lines:
    """Iterates over the lines with their line ends; `number` is the last one's, from 1, `offset`
    where the next one starts, in bytes of the unzipped text.

    A byte order mark before the first line is dropped. Raises DatasetError when the file cannot
    be opened or is UTF-16, LineError for a line that is too long or where compression breaks.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.number, self.offset = path, 0, 0
        fingerprint(path)
        try:
            self._file: io.BufferedReader[Any] = io.BufferedReader(
                path.open("rb", buffering=0), _BUFFER_BYTES
            )
        except OSError as error:
            raise DatasetError(f"{path}: cannot be opened: {error.strerror}") from None
        self._text: IO[bytes] = self._file
        self._broken = self._sought = False
        self._packed = self._file.peek(2)[:2] == _GZIP
        if self._packed:
            self._text = _unzipping(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._text.close()
        self._file.close()

    @property
    def bytes_read(self) -> int:
        """Bytes of the file (as it is on disk, compressed or not) that were read so far."""
        return self._file.tell()

    def seek(self, offset: int, number: int) -> None:
        """Goes on with line `number`, which starts at `offset`. The first time, unzips a gzipped
        file to a temporary one; raises ScratchError when there is no room for it."""
        if not self._sought:
            self._sought = True
            if self._packed:
                self._text.close()
                self._text = _unzipped(self._file)
            else:
                self._text = self._file = io.BufferedReader(
                    self._file.detach(), _SEEKING_BUFFER_BYTES
                )
        self._text.seek(offset)
        self.offset, self.number = offset, number - 1

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if self._broken:
            raise StopIteration
        try:
            raw = self._text.readline(MAX_LINE_BYTES + 1)
            if not raw:
                raise StopIteration
            self.number += 1
            self.offset += len(raw)
            if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                self._skip_line()
                raise LineError(self.number, f"is longer than {MAX_LINE_BYTES} bytes")
        except (OSError, EOFError, zlib.error) as error:
            self._broken = True
            raise LineError(
                self.number + 1, f"the file cannot be read from about here on: {error}"
            ) from None
        if self.number == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DatasetError(f"{self.path}: is UTF-16; expected UTF-8 (convert with iconv)")
            raw = raw.removeprefix(_BOM)
        return raw

    def _skip_line(self) -> None:
        while rest := self._text.readline(_BUFFER_BYTES):
            self.offset += len(rest)
            if rest.endswith(b"\n"):
                return


def _unzipping(file: io.BufferedReader[Any]) -> io.BufferedReader[Any]:
    return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)), _BUFFER_BYTES)


def _unzipped(file: io.BufferedReader[Any]) -> IO[bytes]:
    """The text of a gzipped file in a temporary one; where compression breaks, up to there."""
    copy = scratch_file(_SEEKING_BUFFER_BYTES)
    file.seek(0)
    try:
        with _unzipping(file) as text:
            # In pieces no larger than lines are read in: a break takes the piece it is in along.
            while piece := _piece(text):
                with room_needed():
                    copy.write(piece)
        with room_needed():
            copy.flush()
    except ScratchError:
        with suppress(OSError):  # it tries to write the rest
            copy.close()
        raise
    return copy


def _piece(text: io.BufferedReader[Any]) -> bytes:
    try:
        return text.read1(_BUFFER_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""
