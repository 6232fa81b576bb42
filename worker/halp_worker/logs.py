"""`set_up_logging`: what a worker says while it works, on stderr, as lines of text or of JSON.

A line of text is for people; a line of JSON has what was passed as `extra` as fields of its own.
Whatever a dataset, a library or a server puts into them: a record stays one line (and the lines of
its traceback), has no control characters, and not the server's password.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, TextIO

from halp_producer.problem import printable
from halp_producer.server import without_password
from halp_worker.settings import LogFormat

log = logging.getLogger(__name__)

_QUIET: Final = ("httpx", "httpx2", "urllib3", "qwen_vl_utils", "PIL")
"""Libraries that tell of each request."""

_WARNINGS: Final = "py.warnings"
"""The logger of what `warnings.warn` was told."""

_OF_EVERY_RECORD: Final = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"}


def set_up_logging(log_format: LogFormat = "text", url: str = "") -> None:
    """For the whole process, warnings among it; with `json`, also what ends it unforeseen.

    url: the server's; its password is left out of everything.
    """
    handler = _OnStderr()
    handler.setFormatter(JsonLines(url) if log_format == "json" else TextLines(url))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for library in _QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    if log_format == "json":
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_on_thread


def belong_to(**fields: str) -> None:
    """From now on each line of JSON has these too: which worker it is, of which run."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonLines):
            handler.formatter.always = fields


class TextLines(logging.Formatter):
    """`2026-01-31 12:00:00,123 INFO message`, local time; a traceback below it."""

    def __init__(self, url: str = "") -> None:
        super().__init__()
        self._url = url

    def format(self, record: logging.LogRecord) -> str:
        message = without_password(_message(record), self._url)
        lines = [f"{self.formatTime(record)} {record.levelname} {message}"]
        lines += without_password(_traceback(record), self._url).splitlines()
        return "\n".join(map(printable, lines))


class JsonLines(logging.Formatter):
    """`time` (RFC 3339, UTC), `level`, `message`, `logger`, what it belongs to, `exception` where
    there is one, and the record's own fields."""

    def __init__(self, url: str = "") -> None:
        super().__init__()
        self._url = url
        self.always: dict[str, str] = {}

    def format(self, record: logging.LogRecord) -> str:
        own = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": _message(record),
            "logger": record.name,
            **self.always,
            **own,
        }
        if raised := _traceback(record):
            fields["exception"] = raised
        return json.dumps({name: self._safe(value) for name, value in fields.items()})

    def _safe(self, value: object) -> object:
        """As JSON has it; the rest in words."""
        match value:
            case None | bool() | int() | float():
                return value
            case list() | tuple():
                return [self._safe(one) for one in value]
            case _:
                return without_password(str(value), self._url)


class _OnStderr(logging.StreamHandler[TextIO]):
    """On what is stderr at the moment: a live line puts itself in between."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    # These come with the line of code they were warned at, on a line of its own.
    return " ".join(message.split()) if record.name == _WARNINGS else message


def _traceback(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    return "".join(traceback.format_exception(record.exc_info[1])).rstrip()


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    log.critical("unforeseen: %s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _log_uncaught_on_thread(raised: threading.ExceptHookArgs) -> None:
    if raised.exc_value is not None:
        _log_uncaught(raised.exc_type, raised.exc_value, raised.exc_traceback)
