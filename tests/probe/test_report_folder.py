"""Where a report goes: it is there when it is whole, and replaces nothing but a report."""

from __future__ import annotations

import pytest

from halp_probe.report.folder import OutputExists, report_folder


def write(out, text="page", force=False):
    with report_folder(out, force=force) as folder:
        (folder / "index.html").write_text(text)
        (folder / "evaluation.json").write_text("{}")


def test_nothing_is_there_before_it_is_whole(tmp_path):
    """An error leaves neither a report nor what was begun of one."""

    def fail():
        with report_folder(tmp_path / "out", force=False) as folder:
            (folder / "index.html").write_text("half")
            assert not (tmp_path / "out").exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_replaced_by_force_alone(tmp_path):
    """And whole: nothing of the old one stays."""
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "old.png").write_bytes(b"")
    with pytest.raises(OutputExists, match="--force replaces it"):
        write(tmp_path / "out", "new")
    write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "index.html").read_text() == "new"
    assert not (tmp_path / "out" / "old.png").exists()
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_failed_replacement_keeps_the_old_report(tmp_path):
    """It is moved away only when the new one is whole."""
    write(tmp_path / "out", "old")

    def fail():
        with report_folder(tmp_path / "out", force=True):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "out" / "index.html").read_text() == "old"


def test_an_empty_folder_is_taken(tmp_path):
    """Such as `mktemp -d` makes."""
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize("force", [False, True])
def test_no_other_folder_or_file_is_replaced(tmp_path, force):
    """Not by force either: a wrong path deletes nothing."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "index.html").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    for name in ("thesis", "file", "link", "missing/out"):
        with pytest.raises(OutputExists):
            write(tmp_path / name, force=force)
    assert (tmp_path / "thesis" / "index.html").read_text() == "mine"


def test_what_came_into_being_meanwhile_is_kept(tmp_path):
    """Two reports to one place: the second says so."""

    def late():
        with report_folder(tmp_path / "out", force=False):
            write(tmp_path / "out", "first")

    with pytest.raises(OutputExists):
        late()
    assert (tmp_path / "out" / "index.html").read_text() == "first"
