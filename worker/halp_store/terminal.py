"""Text as a terminal may show it: what an answer or a file name holds cannot steer it.

Knows the width of characters; refuses to know what a row means.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size

# Where there is no terminal and no COLUMNS; a text that is piped on is still a text to look at.
_NO_TERMINAL: Final = (160, 24)
# Narrower than this, a text says nothing.
_NARROWEST: Final = 8
_GAP: Final = "  "


def printable(text: str) -> str:
    """`text` on one line: line breaks, control and invisible characters are escaped."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def printable_lines(text: str) -> str:
    """The same, but line breaks stay."""
    return "\n".join(map(printable, text.replace("\r\n", "\n").split("\n")))


def json_text(value: object, indent: int | None = None) -> str:
    """JSON that shows any language as it is and escapes all that would steer a terminal."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # Outside of strings there are line breaks only, and those within are escaped already.
    return text if text.isprintable() else re.sub(r"[^\n -~]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    one = found.group()
    return one if one.isprintable() else json.dumps(one)[1:-1]


def width() -> int:
    """Of the terminal, in cells."""
    return shutil.get_terminal_size(_NO_TERMINAL).columns


def table(
    rows: Sequence[Sequence[str]],
    wide: int,
    whole: Collection[int],
    right: Collection[int] = (),
    ends: Collection[int] = (),
) -> Iterator[str]:
    """A line for each row, its cells shortened so that the line has at most `wide` cells.

    whole: columns that are never shortened, even if the line gets longer. right: these end
    together, as numbers do. ends: of these the end says more than the beginning, as of a path.
    """
    shown = [
        [printable(_cut(cell, wide, at in whole, at in ends)) for at, cell in enumerate(row)]
        for row in rows
    ]
    natural = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    widths = _shares(natural, wide - len(_GAP) * (len(natural) - 1), whole)
    for row in shown:
        cells = []
        for at, (cell, most) in enumerate(zip(row, widths, strict=True)):
            space = " " * (most - cell_len(cell))
            if cell_len(cell) > most:
                cells.append(_shortened(cell, most, at in ends))
            else:
                cells.append(space + cell if at in right else cell + space)
        yield _GAP.join(cells).rstrip()


def _cut(cell: str, wide: int, whole: bool, end: bool) -> str:
    """What may be seen of it and a little more, before each character is looked at."""
    if whole or len(cell) <= wide:
        return cell
    return cell[-wide - 1 :] if end else cell[: wide + 1]


def _shortened(cell: str, most: int, end: bool) -> str:
    if end:
        return "…" + set_cell_size(cell[::-1], most - 1)[::-1]
    return set_cell_size(cell, most - 1) + "…"


def _shares(natural: Sequence[int], room: int, whole: Collection[int]) -> list[int]:
    """Narrow columns get what they want, the wide ones share the rest."""
    widths = list(natural)
    room -= sum(size for at, size in enumerate(natural) if at in whole)
    rest = sorted((at for at in range(len(natural)) if at not in whole), key=lambda at: natural[at])
    while rest:
        at = rest.pop(0)
        widths[at] = min(natural[at], max(_NARROWEST, room // (len(rest) + 1)))
        room -= widths[at]
    return widths


def fields(values: Mapping[str, str]) -> Iterator[str]:
    """A name and its value, a line each; what has more lines goes on below itself."""
    indent = max(map(len, values)) + len(_GAP)
    for name, value in values.items():
        lines = printable_lines(value).split("\n")
        title = f"{name.replace('_', ' '):<{indent}}"
        yield (title + lines[0]).rstrip()
        yield from ((" " * indent + line).rstrip() for line in lines[1:])


def size(count: int) -> str:
    """Of bytes, in kB, MB or GB of 10^3, 10^6 and 10^9."""
    if count < 1e6:
        return f"{count / 1e3:,.1f} kB"
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
