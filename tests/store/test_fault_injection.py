"""Every n of every operation: the disk fails there, or the store is taken away there.

After each: nothing acknowledged that a new reader does not find, a StoreError with path, cause and
remedy, and the same call succeeds once the fault is over. `make faults` tries each errno at each n;
here it rotates, over some of the n.
"""

import dataclasses
import errno
import os
import re
import shutil

import pytest

from halp_store.compaction import compact
from halp_store.errors import PruneRefused, StoreError, StoreGone, StoreUnavailable
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.repair import repair
from halp_store.verify import verify_store

from .faults import Faults

ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.EACCES, errno.EXDEV)
ALL = os.environ.get("HALP_FAULTS") == "all"
MOST = 10_000 if ALL else 4
"""So many n of one operation, evenly spread."""


@pytest.fixture(scope="module")
def tiny(layout):
    return dataclasses.replace(layout, hidden_size=4, vision_hidden_size=4)


@pytest.fixture(scope="module")
def templates(tmp_path_factory, tiny, make_rows, open_writer):
    """Stores to copy: of two segments; compacted too; with an interrupted compaction; an orphan."""
    folder = tmp_path_factory.mktemp("templates")
    for name in ("segments", "compacted", "orphan"):
        writer = open_writer(folder / name, tiny)
        for ids in (["a", "b"], ["c"]):
            writer.append(make_rows(ids, of=tiny))
            writer.flush()
    compact(LocalStorage(folder / "compacted"))
    LocalStorage(folder / "orphan").write(f"segments/dead-{0:032x}/answer/c.0", b"1")
    shutil.copytree(folder / "segments", folder / "begun")
    shutil.copytree(folder / "segments", folder / "counted")
    with Faults.failing(10**9, errno.EIO) as faults:
        compact(LocalStorage(folder / "counted"))
    with pytest.raises(StoreUnavailable), Faults.failing(3 * faults.calls // 4, errno.EIO):
        compact(LocalStorage(folder / "begun"))
    stranger = open_writer(folder / "stranger", tiny)
    stranger.append(make_rows(["x"], of=tiny))
    stranger.flush()
    other = open_writer(folder / "other layout", dataclasses.replace(tiny, hidden_size=6))
    other.append(make_rows(["x"], of=other.layout))
    other.flush()
    return folder


class Case:
    """One operation on a store of its own. receipts: the ids that were acknowledged."""

    def __init__(self, kind, path, tiny, make_rows, open_writer):
        self.kind, self.path, self.receipts = kind, path, []
        self._open = lambda: open_writer(path, tiny)
        self._rows = lambda ids: make_rows(ids, of=tiny)
        self._disk = LocalStorage(path)
        self._disk.read("zarr.json")  # opens it
        self.writer = self.store = None
        if kind in {"flush", "receipt", "fence", "refresh"}:
            self.writer = self._open()
            if kind == "flush":
                self.writer.append(self._rows(["d"]))
        if kind in {"read", "follow"}:
            self.store = open_store(path)

    def run(self):
        getattr(self, f"_run_{self.kind.replace(' ', '_')}")()

    def _run_open(self):
        self._open()

    _run_make = _run_open

    def _run_look(self):
        open_store(self.path)

    def _run_flush(self):
        if receipt := self.writer.flush().receipt:  # None if all was acknowledged before
            self._acknowledge(receipt)

    def _run_receipt(self):
        self._acknowledge(self.writer.receipt_for(self._rows(["a", "c"]).keys))

    def _run_fence(self):
        self.writer.fence(["dead"])

    def _run_refresh(self):
        self.writer.refresh()

    def _run_read(self):
        ids, _ = self.store.array("query_token", layer=0)
        assert ids == ("a", "b", "c")
        assert self.store["b"].question_id == "b"
        batches = list(self.store.iter_batches(["question_id"], batch_rows=2))
        assert sum(len(batch["question_id"]) for batch in batches) == 3

    def _run_follow(self):
        assert sum(len(view) for view in self.store.follow(idle_seconds=0)) == 0

    def _run_compact(self):
        compact(self._disk)

    _run_resume = _run_compact

    def _run_prune(self):
        prune(self._disk, grace_seconds=0)

    def _run_repair(self):
        repair(self._disk, grace_seconds=0)

    def _run_verify(self):
        found = verify_store(self._disk)
        self.problems = found.problems

    def _acknowledge(self, receipt):
        self.receipts += [key.question_id for key in receipt.rows]


TEMPLATE = {
    "make": None,
    "open": "segments",
    "look": "compacted",
    "flush": "segments",
    "receipt": "compacted",
    "fence": "orphan",
    "refresh": "segments",
    "read": "segments",
    "read compacted": "compacted",
    "follow": "segments",
    "compact": "segments",
    "resume": "begun",
    "prune": "compacted",
    "repair": "orphan",
    "verify": "segments",
    "verify compacted": "compacted",
}
"""Operation -> the store that it is tried on."""


@pytest.fixture
def cases(tmp_path, templates, tiny, make_rows, open_writer):
    """Makes a case in a new folder of its own; None for the number of calls that it makes."""
    numbers = iter(range(1_000_000))

    def make(kind):
        path = tmp_path / f"{next(numbers)}" / "store"
        path.parent.mkdir()
        if TEMPLATE[kind]:
            shutil.copytree(templates / TEMPLATE[kind], path)
        return Case(kind.partition(" ")[0], path, tiny, make_rows, open_writer)

    return make


def moments(cases, kind):
    """The n to try: each, or some."""
    with Faults.failing(10**9, errno.EIO) as faults:
        cases(kind).run()
    # Reading has some calls of its own each time; a fault that is not hit ends it.
    return range(1, faults.calls + 1, max(1, faults.calls // MOST))


def rows_of(kind):
    return {"a", "b", "c"} if TEMPLATE[kind] else set()


def struck(case, faults):
    """Run it; the StoreError that came out of it, or None. Any other is a failure of the test."""
    try:
        with faults:
            case.run()
    except StoreError as error:
        return error
    return None


def assert_helps(error, path):
    """Path, cause and remedy are in the message."""
    assert str(path) in str(error)
    assert "; " in str(error)
    assert not {"delete segments", "delete compacted"} & {
        match[0] for match in re.finditer("(?<!cannot )delete (segments|compacted)", str(error))
    }


@pytest.mark.parametrize("kind", TEMPLATE)
def test_a_disk_that_fails_once_loses_nothing(cases, kind):
    """Nothing acknowledged that a new reader does not find, and the next try succeeds."""
    for turn, at in enumerate(moments(cases, kind)):
        for number in ERRORS if ALL else [ERRORS[turn % len(ERRORS)]]:
            case = cases(kind)
            faults = Faults.failing(at, number)
            error = struck(case, faults)
            where = f"{kind}, call {at}, {errno.errorcode[number]}"
            if error is not None:
                expected = PruneRefused if kind == "prune" else StoreUnavailable
                assert isinstance(error, StoreUnavailable | expected), f"{where}: {error!r}"
                assert os.strerror(number) in str(error), where
                assert_helps(error, case.path)
                if case.writer and kind == "flush":
                    assert case.writer.rows_buffered == 1, where
            elif kind.startswith("verify"):
                for problem in case.problems:
                    assert os.strerror(number) in problem.sentence, where
            case.run()
            found = verify_store(case.path)
            assert found.ok, f"{where}: {found.problems}"
            ids = set(open_store(case.path)) if kind != "make" else set()
            assert ids >= {*case.receipts, *rows_of(kind)}, where
            shutil.rmtree(case.path.parent)


def files_of(folder):
    return {
        str(one.relative_to(folder)): one.read_bytes()
        for one in sorted(folder.rglob("*"))
        if one.is_file()
    }


def exchange(how, path, templates):
    """Take the store away; what was there is at `path`.away then, where it was not emptied."""
    if how == "emptied":
        for one in path.iterdir():
            shutil.rmtree(one) if one.is_dir() else one.unlink()
        shutil.copytree(templates / "stranger", path, dirs_exist_ok=True)
        return
    away = path.with_suffix(".away")
    path.rename(away)
    if how != "moved":
        shutil.copytree(away if how == "copy" else templates / how, path)


@pytest.mark.parametrize("how", ["moved", "stranger", "other layout", "copy", "emptied"])
@pytest.mark.parametrize("kind", [one for one in TEMPLATE if TEMPLATE[one]])
def test_a_store_that_is_taken_away_gets_no_wrong_receipt(cases, templates, kind, how):
    """What was acknowledged is in the store that was opened, and nothing is in the other."""
    for at in moments(cases, kind)[:: 1 if ALL else 3]:
        case, before = cases(kind), {}

        def take_away(case=case, before=before):
            exchange(how, case.path, templates)
            before.update(files_of(case.path) if case.path.exists() else {})

        faults = Faults(at, take_away)
        error = struck(case, faults)
        if not faults.was_hit:
            break
        where = f"{kind}, {how}, call {at}: {error!r}"
        if error is not None:
            assert str(case.path) in str(error), where
            if how != "emptied" and kind not in {"open", "look"}:
                assert isinstance(error, StoreGone), where
        after = files_of(case.path) if case.path.exists() else {}
        if how == "emptied":  # the same folder: what was on its way may lie there, and is no row
            after = {name: after.get(name) for name in before}
            if kind not in {"compact", "resume", "prune"}:
                assert set(open_store(case.path)) == {"x"}, where
        else:
            away = case.path.with_suffix(".away")
            assert set(open_store(away)) >= {*case.receipts, *rows_of(kind)}, where
            assert verify_store(away).ok, where
        if kind != "open" or error is not None:  # moved before it was opened: made anew
            assert after == before, where
        shutil.rmtree(case.path.parent)
