"""`LabelTable`: the verdicts of one judge over one store, beside it, in versions.

`run1.zarr` has `run1.labels/<judge>/<version>/labels.csv` and `labels.json`. A table is written
aside, made durable and renamed: it is whole or it is not there, and nothing is ever written over.
Refuses to know how a verdict came to be.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from halp_probe.errors import ProbeError
from halp_probe.judging.judges import NAMES, judge_named
from halp_probe.judging.verdict import Label, Verdict
from halp_probe.label_files import (
    ABOUT_FILE,
    FORMAT_VERSION,
    ROWS_FILE,
    DamagedLabels,
    read_about,
    read_rows,
    sync,
    write_about,
    write_rows,
)
from halp_probe.questions import questions_of
from halp_store.address import is_url

if TYPE_CHECKING:
    from halp_store.view import View

_JUDGE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
"""A judge's name is a folder's name on every file system."""
_VERSION: Final = re.compile(r"\d{6}")


class NoLabels(ProbeError):  # noqa: N818 - named for what it says
    """There is no such table; the message says which there are."""


@dataclass(frozen=True)
class LabelTable:
    """judge, version: which table. about: labels.json. verdicts: question id -> verdict.

    path: the table's folder.
    """

    judge: str
    version: int
    about: Mapping[str, Any]
    verdicts: Mapping[str, Verdict]
    path: Path


def labels_folder(store_path: str, given: Path | None = None) -> Path:
    """Where the tables of a store are: beside it, or where it is said. Raises ProbeError."""
    if given is not None:
        return given
    if is_url(store_path):
        raise ProbeError(
            f"{store_path}: label tables are on a disk: say where with --labels DIR "
            "(the same one for every command)"
        )
    path = Path(store_path).absolute()
    return path.with_suffix(".labels") if path.suffix == ".zarr" else Path(f"{path}.labels")


def check_judge_name(judge: str) -> None:
    """Raises ProbeError for a name that is none of a folder."""
    if not _JUDGE.fullmatch(judge):
        raise ProbeError(
            f"judge {judge!r}: expected letters, digits, '.', '_' and '-' (at most 100), as it "
            "names a folder; rename the file, or give --name"
        )


def write_labels(
    store: View,
    judge: str,
    verdicts: Mapping[str, Verdict],
    *,
    options: Mapping[str, Any] | None = None,
    given: Path | None = None,
) -> LabelTable:
    """The next version of this judge's table. given: as of `labels_folder`.

    options: JSON object: what else makes the judge what it is, such as a prompt and a model.
    Raises ProbeError or OSError.
    """
    check_judge_name(judge)
    folder = labels_folder(store.path, given) / judge
    about = _about(store, judge, verdicts, options or {})
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".partial-{uuid.uuid4().hex}"
    aside.mkdir()
    try:
        write_rows(aside / ROWS_FILE, verdicts)
        number = _next_version(folder)
        while True:
            write_about(aside / ABOUT_FILE, {**about, "version": number})
            sync(aside)
            try:
                # Onto a folder that has files, a rename fails: whoever came first stays.
                aside.rename(folder / f"{number:06}")
                break
            except OSError:
                if not (folder / f"{number:06}").exists():
                    raise
                number = _next_version(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for one in (folder, folder.parent, folder.parent.parent):
        sync(one)
    return LabelTable(
        judge, number, {**about, "version": number}, dict(verdicts), folder / f"{number:06}"
    )


def read_labels(
    store: View | str, judge: str, version: int | None = None, given: Path | None = None
) -> LabelTable:
    """A judge's table, the newest without a version. given: as of `labels_folder`.

    Raises NoLabels, DamagedLabels, ProbeError or OSError.
    """
    top = labels_folder(_path(store), given)
    there = _tables(top)
    if judge not in there:
        names = ", ".join(there)
        known = f"there are labels of {names}" if names else "there are no labels"
        raise NoLabels(
            f"{top}: no labels of judge {judge!r}; {known}: make them with "
            f"`halp-probe label {_path(store)} --judge {judge}`"
        )
    if version is None:
        version = there[judge][-1]
    elif version not in there[judge]:
        numbers = ", ".join(map(str, there[judge]))
        raise NoLabels(f"{top / judge}: no version {version}; there are {numbers}")
    return _read(top / judge / f"{version:06}", judge, version)


def ensure_labels(store: View, given: Path | None = None, judge: str = "auto") -> LabelTable:
    """The newest table of a judge. Without one, or where rows came after it, the judge's verdicts
    over the whole store are written as its next. given: as of `labels_folder`.

    A table that was made with options of its own is taken as it is.
    Raises NoLabels where the judge is none that judges by itself, DamagedLabels, ProbeError,
    OSError, or DamagedSegment.
    """
    if judge in _tables(labels_folder(store.path, given)) or judge not in NAMES:
        table = read_labels(store, judge, None, given)
        is_whole = all(one in table.verdicts for one in store.ids)
        if is_whole or judge not in NAMES or table.about.get("options"):
            return table
    judged = judge_named(judge)
    verdicts = {one.question_id: judged(one) for one in questions_of(store)}
    return write_labels(store, judge, verdicts, given=given)


def labels_of(
    store: View, judge: str, version: int | None = None, given: Path | None = None
) -> LabelTable:
    """The version that is asked for, or what `ensure_labels` gives. Raises what both raise."""
    if version is None:
        return ensure_labels(store, given, judge)
    return read_labels(store, judge, version, given)


def list_labels(
    store: View | str, given: Path | None = None
) -> tuple[tuple[str, int, Mapping[str, Any]], ...]:
    """(judge, version, labels.json) of every table, by judge, oldest first.

    Raises DamagedLabels, ProbeError or OSError.
    """
    top = labels_folder(_path(store), given)
    return tuple(
        (judge, number, read_about(top / judge / f"{number:06}", judge, number))
        for judge, numbers in _tables(top).items()
        for number in numbers
    )


def _path(store: View | str) -> str:
    return store if isinstance(store, str) else store.path


def _tables(top: Path) -> dict[str, list[int]]:
    """Judge -> versions. What is half written, or not ours, is none."""
    if not top.is_dir():
        return {}
    found = {
        one.name: sorted(int(inner.name) for inner in one.iterdir() if _is_table(inner))
        for one in sorted(top.iterdir())
        if one.is_dir() and _JUDGE.fullmatch(one.name)
    }
    return {judge: numbers for judge, numbers in found.items() if numbers}


def _is_table(path: Path) -> bool:
    return bool(_VERSION.fullmatch(path.name)) and path.is_dir()


def _next_version(folder: Path) -> int:
    return max((int(one.name) for one in folder.iterdir() if _is_table(one)), default=0) + 1


def _about(
    store: View, judge: str, verdicts: Mapping[str, Verdict], options: Mapping[str, Any]
) -> dict[str, Any]:
    by_label = Counter(str(one.label) for one in verdicts.values())
    by_rule = Counter(one.rule for one in verdicts.values())
    by_kind: dict[str, dict[str, int]] = {}
    for one in verdicts.values():
        of = by_kind.setdefault(str(one.kind), {str(label): 0 for label in Label})
        of[str(one.label)] += 1
    return {
        "format_version": FORMAT_VERSION,
        "judge": judge,
        "rows": len(verdicts),
        "labels": {str(label): by_label[str(label)] for label in Label},
        "kinds": {kind: by_kind[kind] for kind in sorted(by_kind)},
        "rules": dict(by_rule.most_common()),
        "options": dict(options),
        "store": {
            "path": store.path,
            "rows": len(store),
            "fingerprint": dict(store.layout.fingerprint),
        },
        "halp_stream": _package_version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _package_version() -> str:
    try:
        return version("halp-stream")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


def _read(folder: Path, judge: str, number: int) -> LabelTable:
    about = read_about(folder, judge, number)
    verdicts = read_rows(folder / ROWS_FILE)
    if len(verdicts) != about["rows"]:
        raise DamagedLabels(
            f"{folder / ROWS_FILE}: expected {about['rows']:,} rows as {ABOUT_FILE} says, got "
            f"{len(verdicts):,}; label again, which makes the next version"
        )
    return LabelTable(judge, number, about, verdicts, folder)
