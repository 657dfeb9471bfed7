"""The request log: whole lines, bounded, rotated, flushed; and never in a request's way."""

from __future__ import annotations

import json
import threading

import pytest
from hedgerow_server.telemetry.request_log import (
    BLOCK_LINES,
    LONGEST_GATHER,
    SHORTEST_GATHER,
    LogLine,
    RequestLog,
    Sink,
    next_gather,
    open_log,
)


def line(number: int = 0, **more) -> LogLine:
    fields = {
        "time": 1.5,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "request_id": str(number),
        "user": "u",
        "model": "m",
        "version": "1",
        "variant": "champion",
        "outcome": "primary",
        "features": "",
        "queue_ms": 0.1,
        "run_ms": 0.2,
        "total_ms": 0.4,
        "code": "OK",
    }
    return LogLine(**{**fields, **more})


class StuckSink:
    """A sink that takes nothing until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.entered = threading.Event()
        self.blocks: list[bytes] = []

    def write(self, block: bytes) -> None:
        self.entered.set()
        self.let_go.wait()
        self.blocks.append(block)

    def close(self) -> None: ...


async def test_every_line_is_written_before_close_returns(tmp_path):
    log = RequestLog(Sink(tmp_path / "requests.log"))
    for number in range(1000):
        log.record(line(number))
    await log.close()
    written = [json.loads(text) for text in (tmp_path / "requests.log").read_text().splitlines()]
    assert [entry["request_id"] for entry in written] == [str(number) for number in range(1000)]
    assert log.dropped == 0


async def test_an_error_id_is_there_only_where_there_was_an_error(tmp_path):
    log = RequestLog(Sink(tmp_path / "requests.log"))
    log.record(line())
    log.record(line(code="INTERNAL", error_id="e1"))
    await log.close()
    plain, broken = map(json.loads, (tmp_path / "requests.log").read_text().splitlines())
    assert "error_id" not in plain
    assert broken["error_id"] == "e1"


async def test_a_stuck_sink_costs_lines_and_not_time():
    """What does not fit is dropped and counted, and what fits is written later."""
    sink = StuckSink()
    log = RequestLog(sink, capacity=10)
    log.record(line())
    assert sink.entered.wait(10)
    for number in range(25):
        log.record(line(number))
    assert log.dropped == 15
    sink.let_go.set()
    await log.close(timeout=10)
    assert b"".join(sink.blocks).count(b"\n") == 11


async def test_close_gives_up_on_a_stuck_sink(caplog):
    sink = StuckSink()
    log = RequestLog(sink)
    log.record(line())
    await log.close(timeout=0.01)
    assert "stuck" in caplog.text
    sink.let_go.set()


async def test_a_failing_sink_is_counted_and_the_next_lines_go_on(tmp_path, caplog):
    class FailsOnce(Sink):
        failed = False

        def write(self, block: bytes) -> None:
            if not self.failed:
                self.failed = True
                raise OSError(28, "No space left on device")
            super().write(block)

    log = RequestLog(FailsOnce(tmp_path / "requests.log"))
    for number in range(BLOCK_LINES + 3):
        log.record(line(number))
    await log.close()
    assert log.dropped + len((tmp_path / "requests.log").read_text().splitlines()) == BLOCK_LINES + 3
    assert 0 < log.dropped <= BLOCK_LINES
    assert "No space left" in caplog.text


def test_a_file_is_rotated_by_size_and_two_are_kept(tmp_path):
    sink = Sink(tmp_path / "requests.log", rotate_bytes=100)
    for number in range(10):
        sink.write(b"%d" % number * 39 + b"\n")
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requests.log", "requests.log.1"]
    assert (tmp_path / "requests.log.1").read_bytes().split() == [b"6" * 39, b"7" * 39]
    assert (tmp_path / "requests.log").read_bytes().split() == [b"8" * 39, b"9" * 39]


def test_a_restart_goes_on_in_the_same_file(tmp_path):
    for _ in range(2):
        sink = Sink(tmp_path / "requests.log", rotate_bytes=100)
        sink.write(b"x" * 49 + b"\n")
        sink.close()
    sink = Sink(tmp_path / "requests.log", rotate_bytes=100)
    sink.write(b"new\n")
    sink.close()
    assert (tmp_path / "requests.log").read_bytes() == b"new\n"


async def test_each_of_several_workers_has_a_file_of_its_own(tmp_path):
    for worker in range(2):
        await open_log(str(tmp_path / "requests.log"), worker=worker, workers=2).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requests-0.log", "requests-1.log"]


async def test_off_means_off():
    log = open_log("off")
    assert not log.is_on
    log.record(line())
    assert log.dropped == 0
    await log.close()


def test_a_log_that_cannot_be_opened_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        open_log(str(tmp_path / "file" / "requests.log"))


@pytest.mark.parametrize(
    ("rate", "at_once"),
    [(0, 0), (300, 6), (3200, BLOCK_LINES), (10_000, BLOCK_LINES), (60_000, 60_000 * SHORTEST_GATHER)],
)
def test_about_a_block_of_lines_is_written_at_once(rate, at_once):
    """However many lines there were before; bounded where there are few and where there are very many."""
    for seconds in (SHORTEST_GATHER, LONGEST_GATHER):
        for _ in range(10):
            lines = round(rate * seconds)
            seconds = next_gather(seconds, lines)  # noqa: PLW2901 - the state of the loop under test
        assert SHORTEST_GATHER <= seconds <= LONGEST_GATHER
        assert lines == pytest.approx(at_once, rel=0.05, abs=1)
