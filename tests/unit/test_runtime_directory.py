"""Where the sockets between a server's processes lie."""

from __future__ import annotations

import socket
import stat
import tempfile
from pathlib import Path

import pytest
from hedgerow_server.runtime_directory import NoRuntimeDirectory, runtime_directory


@pytest.fixture
def temporary(monkeypatch):
    """Makes a directory the temporary one."""

    def use(path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(path))
        return path

    return use


@pytest.fixture
def short():
    """A directory with a short path, which pytest's own need not have."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as path:
        yield Path(path)


def test_it_is_private_and_gone_afterwards(temporary, short):
    inside = temporary(short)
    with runtime_directory() as path:
        assert Path(path).parent == inside
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o700
        Path(path, "7.sock").touch()
    assert not list(inside.iterdir())


def test_a_long_temporary_directory_is_passed_over_and_left_empty(temporary, short):
    long = temporary(short / ("x" * 60) / ("y" * 60))
    with runtime_directory(short) as path, socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{path}/4194304.sock")
        assert Path(path).parent == short
        assert not list(long.iterdir())


@pytest.mark.parametrize("length", range(60, 110, 7))
def test_the_longest_socket_fits_in_whatever_is_chosen(temporary, short, length):
    temporary(Path(f"{short}/".ljust(length, "x")))
    with runtime_directory(short) as path, socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{path}/4194304.sock")


def test_only_long_ones_is_an_error_that_says_what_to_do(temporary, short):
    long = temporary(short / ("x" * 120))
    expected = pytest.raises(NoRuntimeDirectory, match="at most 103 bytes; set TMPDIR to a shorter one")
    with expected, runtime_directory(long):
        pass
    assert not list(long.iterdir())


def test_none_at_all_is_an_error_that_says_what_to_do(temporary, short, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(short / "gone"))
    expected = pytest.raises(NoRuntimeDirectory, match="set TMPDIR to one that this user may write to")
    with expected, runtime_directory(short):
        pass
