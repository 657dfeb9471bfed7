"""The last good snapshot on disk: whole, or ignored."""

from __future__ import annotations

import logging
import os

import pytest
from fleet import snapshot
from hedgerow_server.routing.last_good import LastGood


@pytest.fixture
def kept(tmp_path):
    return LastGood(tmp_path / "state")


def test_what_was_saved_is_loaded(kept):
    saved = snapshot(7, {"m": {"1": 100, "2": 0}})
    kept.save(saved)
    assert kept.load() == saved


def test_nothing_saved_is_no_warning(kept, caplog):
    assert kept.load() is None
    assert not caplog.records


def test_the_second_save_replaces_the_first_and_leaves_no_other_file(kept, tmp_path):
    kept.save(snapshot(1, {}))
    kept.save(snapshot(2, {}))
    assert kept.load().version == 2
    assert len(list((tmp_path / "state").iterdir())) == 1


def test_every_damaged_byte_and_every_truncation_is_noticed(kept, tmp_path, caplog):
    """A file that is not whole is ignored with a warning; it never becomes another snapshot."""
    kept.save(snapshot(300, {"m": {"1": 100}}))
    path = tmp_path / "state" / "last-good.snapshot"
    whole = path.read_bytes()
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    for content in [*damaged, *(whole[:i] for i in range(len(whole))), whole + b"x"]:
        path.write_bytes(content)
        caplog.clear()
        assert kept.load() is None
        assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_save_that_fails_leaves_the_old_one(kept, tmp_path, monkeypatch):
    kept.save(snapshot(1, {}))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        kept.save(snapshot(2, {}))
    assert kept.load().version == 1
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["last-good.snapshot"]
