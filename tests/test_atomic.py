"""A file that is replaced is the old one or the new one, whatever happens on the way."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from ffjord_kit import atomic
from ffjord_kit.atomic import replacing, write_text


class Crash(BaseException):
    """An end that no handler of ordinary errors sees."""


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_a_text_is_written_and_replaced(tmp_path):
    path = tmp_path / "new.txt"
    for text in ("first", "the second, with ± and \n a line"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert names(tmp_path) == ["new.txt"]


def test_the_old_file_is_there_until_the_new_one_is_whole(old):
    with replacing(old) as temporary:
        temporary.write_text("half of the n")
        assert old.read_text() == "old"
        assert temporary.parent == old.parent
        assert temporary.suffix == old.suffix
        temporary.write_text("new")
    assert old.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Crash])
def test_a_crash_inside_the_writer_leaves_the_old_file_and_no_other(old, error):
    with pytest.raises(error), replacing(old) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert old.read_text() == "old"
    assert names(old.parent) == ["file.txt"]


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_a_crash_after_the_writer_leaves_the_old_file_and_no_other(old, monkeypatch, call):
    def crash(*arguments):
        raise Crash

    monkeypatch.setattr(atomic.os, call, crash)
    with pytest.raises(Crash):
        write_text(old, "new")
    assert old.read_text() == "old"
    assert names(old.parent) == ["file.txt"]


def test_sigterm_inside_the_writer_leaves_the_old_file_and_no_other(old):
    program = (
        "import os, signal, sys; from ffjord_kit.atomic import replacing\n"
        f"with replacing({str(old)!r}) as temporary:\n"
        "    temporary.write_text('half of the n'); os.kill(os.getpid(), signal.SIGTERM); temporary.write_text('new')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, "")
    assert old.read_text() == "old"
    assert names(old.parent) == ["file.txt"]


def test_sigterm_is_handled_as_before_after_a_write(old):
    write_text(old, "new")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_crash_before_there_was_a_file_leaves_none(tmp_path):
    with pytest.raises(Crash), replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("half of the n")
        raise Crash
    assert names(tmp_path) == []


def test_the_content_is_on_the_disk_before_it_takes_the_name(old, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda file: (calls.append("flush"), fsync(file)))
    monkeypatch.setattr(atomic.os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    write_text(old, "new")
    assert calls == ["flush", "rename", "flush"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, umask, mask, mode):
    umask(mask)
    path = tmp_path / "file.txt"
    write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert umask(mask) == mask


def test_a_missing_folder_is_an_error_that_makes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "nowhere" / "file.txt", "new")
    assert names(tmp_path) == []
