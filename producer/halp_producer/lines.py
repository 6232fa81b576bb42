"""`Lines`: the numbered lines of a text file, gzipped or not, each within a bound.

Knows bytes, gzip and line ends; refuses to know records and encodings beyond the byte order mark.
A bad stretch of the file is a `LineError` from `next()`, after which iteration may go on.
"""

from __future__ import annotations

import gzip
import io
import stat
import zlib
from pathlib import Path
from typing import Final, NamedTuple, Self, cast

from halp_producer.problem import DatasetError

MAX_LINE_BYTES: Final = 16 << 20
"""Above any job (three texts and metadata of 1 MiB, escaped), far below what would fill memory."""

_BUFFER_BYTES: Final = 1 << 20
"""Read size; larger ones were not faster."""

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


class Lines:
    """Iterates over the lines with their line ends; `number` is the last one's, from 1.

    A byte order mark before the first line is dropped. Raises DatasetError when the file cannot
    be opened or is UTF-16, LineError for a line that is too long or where compression breaks.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0
        fingerprint(path)
        try:
            self._file = io.BufferedReader(path.open("rb", buffering=0), _BUFFER_BYTES)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be opened: {error.strerror}") from None
        self._text: io.BufferedIOBase = self._file
        self._broken = False
        if self._file.peek(2)[:2] == _GZIP:
            unzipped = gzip.GzipFile(fileobj=self._file)
            self._text = io.BufferedReader(cast(io.RawIOBase, unzipped), _BUFFER_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._text.close()
        self._file.close()

    @property
    def bytes_read(self) -> int:
        """Bytes of the file (as it is on disk, compressed or not) that were read so far."""
        return self._file.tell()

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
        while (rest := self._text.readline(_BUFFER_BYTES)) and not rest.endswith(b"\n"):
            pass
