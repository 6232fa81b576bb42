"""The troubleshooting page has the messages that the programs have today, and all of them."""

import ast
import re
from pathlib import Path

import pytest

from halp_worker.fates import Reason

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for room in ("producer", "worker")
    for path in (ROOT / room).rglob("*.py")
    if "training" not in path.parts  # of the demo's model: for who makes it, not for who uses it
)
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()

ERRORS = {
    *(
        "FatalError",
        "HostBroken",
        "DeviceBroken",
        "DeviceOutOfMemory",
        "Rejected",
        "Retryable",
        "Rejection",
    ),
    *("ServerError", "DatasetError", "ScratchError", "LineError", "UnknownRunError"),
    *("AskError", "UrlError"),
    *("BadAddress", "RemoteExtraMissing", "NothingToMeasure", "ExportError", "SelectionError"),
    *("ProbeError", "BadProbe", "UnknownRepresentation", "CannotSplit", "NoRows"),
    *("CannotTrain", "NoLabels", "DamagedLabels", "BadLabelsFile", "BadProgram"),
    *("EndpointFailed", "UnfinishedBusy"),
    *("ImportRefused", "OutputExists", "PermissionError", "ConnectionError", "TimeoutError"),
}
"""What they say is printed for a person, as it is."""

SAY_SO = {"errors.py": {"__init__"}, "server.py": {"append"}}
"""Calls that take a sentence for a person, in these files alone."""


def _text(node):
    """A text of the source, `…` for what varies; None if it is something else."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(one.value if isinstance(one, ast.Constant) else "…" for one in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (_text(left) or "…") + (_text(right) or "…")
    return None


def _nodes():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            yield path, node


TEXTS = [text for _, node in _nodes() if (text := _text(node))]


def _said():
    """(place, text) of each sentence that some error is made with."""
    for path, node in _nodes():
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=given):
                if name in ERRORS or name in SAY_SO.get(path.name, ()):
                    yield from ((f"{path.name}:{node.lineno}", _text(one)) for one in given)
            case ast.Return(value=value) if path.name in ("server.py", "server_errors.py"):
                yield f"{path.name}:{node.lineno}", _text(value)


SAID = [(place, text) for place, text in _said() if text and len(re.findall(r"[a-z]+", text)) > 3]


def _messages():
    """Of headings, and of the cells of tables whose column is named for messages."""
    yield from re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
    for table in re.findall(r"^\|.*?\|$(?:\n\|.*\|$)+", PAGE, re.MULTILINE):
        header, _, *rows = (re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines())
        names = [one.strip() for one in header]
        if "message" in names:
            for row in rows:
                yield from re.findall(r"^ *`(.+)` *$", row[names.index("message")])


def _pattern(message):
    """Fits a text of the source if that is the message, whatever stands for its `…`."""
    parts = map(re.escape, message.replace("\\|", "|").split("…"))
    return re.compile(".*".join(parts), re.DOTALL)


PATTERNS = {message: _pattern(message) for message in _messages()}


def test_every_message_on_the_page_is_in_the_sources():
    """A message that was reworded or removed fails here."""
    assert len(PATTERNS) > 100
    unknown = [
        message for message, pattern in PATTERNS.items() if not any(map(pattern.fullmatch, TEXTS))
    ]
    assert not unknown, "\n".join(unknown)


def test_every_error_in_the_sources_is_on_the_page():
    """A new error for people fails here until docs/troubleshooting.md says what to do about it."""
    assert len(SAID) > 80
    missing = [
        f"{place}: {text}"
        for place, text in SAID
        if not any(pattern.fullmatch(text) for pattern in PATTERNS.values())
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("reason", [*Reason, "cancelled"])
def test_every_reason_is_on_the_page(reason):
    """Each word of the failed list has its row."""
    assert f"| `{reason}` |" in PAGE
