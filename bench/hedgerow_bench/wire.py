"""Load on raw connections: sends what is due, reads what has come, in one thread without a library between.

Unlike `open_loop` and `closed_loop` it can do tens of thousands of requests a
second from one core, so that at half of a fast server's capacity it is not the
generator that is measured.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence

from hedgerow_bench.http2 import UNAVAILABLE, UNSEEN, Connection
from hedgerow_bench.records import OVERFLOW, Log

#: select(2) oversleeps by tens of microseconds; what is due sooner is polled for.
_SPIN_SECONDS = 100e-6
_READ_BYTES = 1 << 18
_CONNECT_SECONDS = 5.0
#: Reconnections in a row without an answer between them; then the server counts as gone.
_RECONNECTIONS = 20


class Line:
    """A connection and its socket."""

    def __init__(self, target: str, method: str, headers: Sequence[tuple[str, str]]) -> None:
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.http = Connection(target, method, headers)
        self.socket.sendall(self.http.out)
        self.http.out.clear()
        while not self.http.ready:
            if not (data := self.socket.recv(_READ_BYTES)):
                raise ConnectionError(f"{target} closed the connection at once")
            self.http.receive(data)
        self.socket.setblocking(False)

    def flush(self) -> None:
        """Sends as much as the socket takes."""
        if self.http.out:
            with contextlib.suppress(BlockingIOError):
                del self.http.out[: self.socket.send(self.http.out)]

    def read(self) -> list[tuple[int, str]]:
        """What has ended."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        return self.http.receive(data) if data else self.http.lost()


class Lines:
    """The connections of a run; one that the server closes is replaced.

    Args:
        connect: Makes a connection.
        count: How many.
        bodies: Framed messages; the n-th request sends the n-th, modulo their number.
    """

    def __init__(self, connect: Callable[[], Line], count: int, bodies: Sequence[bytes]) -> None:
        self._connect = connect
        self._bodies = bodies
        self._lines = [connect() for _ in range(count)]
        self._turn = 0
        self._leaving: list[Line] = []
        self._reconnections = 0

    def ask(self, number: int) -> bool:
        """Sends the n-th request on the next connection that has room; False if none has."""
        body = self._bodies[number % len(self._bodies)]
        for _ in self._lines:
            self._turn = (self._turn + 1) % len(self._lines)
            http = self._lines[self._turn].http
            if http.has_room(len(body)):
                http.ask(number, body)
                return True
        return False

    def exchange(self, wait: float) -> list[tuple[int, str]]:
        """Sends what is pending, waits at most `wait` seconds for answers, returns what ended."""
        everyone = self._lines + self._leaving
        for line in everyone:
            line.flush()
        blocked = [line.socket for line in everyone if line.http.out]
        by_socket = {line.socket: line for line in everyone}
        readable, _, _ = select.select(list(by_socket), blocked, (), wait)
        ended: list[tuple[int, str]] = []
        for one in readable:
            ended += by_socket[one].read()
        if any(line.http.leaving for line in everyone):
            self._replace()
        if ended:
            self._reconnections = 0
        return ended

    def _replace(self) -> None:
        for place, line in enumerate(self._lines):
            if line.http.leaving:
                self._reconnections += 1
                if self._reconnections > _RECONNECTIONS:
                    raise ConnectionError("the server closes every connection")
                self._leaving.append(line)
                self._lines[place] = self._connect()
        for line in [line for line in self._leaving if not line.http.under_way]:
            self._leaving.remove(line)
            line.socket.close()

    def close(self) -> None:
        """Closes all of them."""
        for line in self._lines + self._leaving:
            line.socket.close()


def drive_open(
    lines: Lines,
    due: Sequence[float],
    log: Log,
    *,
    outstanding: int,
    timeout: float,
    spin: bool,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Sends a request at each due time, whatever the server does, and waits for the answers.

    Args:
        lines: Where to.
        due: Seconds of the monotonic clock, in order.
        log: Gets an entry for every request that came due; its latency counts from when it was due.
        outstanding: Requests due or under way at most; one beyond them is
            logged as `OVERFLOW` with latency `timeout`.
        timeout: Seconds after the last request; what is unanswered then is logged as `ABANDONED`.
        spin: See `WirePlan`.
        stopped: Whether to end the sending early.
    """
    clock = time.monotonic
    late: dict[int, float] = {}  # by what the generator itself was late; of requests due and unanswered
    waiting: deque[int] = deque()  # due, and no connection has room
    following, count = 0, len(due)
    ends = due[-1] + timeout if count else clock()
    while (following < count or late) and (now := clock()) < ends:
        if following < count and stopped():
            count, ends = following, now + timeout
        while following < count and due[following] <= now:
            if len(late) >= outstanding:
                log.add(due[following], now - due[following], timeout, "", OVERFLOW)
            else:
                late[following] = now - due[following]
                waiting.append(following)
            following += 1
        while waiting and lines.ask(waiting[0]):
            waiting.popleft()
        wait = min((due[following] if following < count else ends) - clock(), 0.1)
        if spin:
            wait -= _SPIN_SECONDS
        ended = lines.exchange(max(0.0, wait))
        now = clock()
        for number, status in ended:
            if status == UNSEEN:
                waiting.append(number)
            else:
                log.add(due[number], late.pop(number), now - due[number], "", status)
    now = clock()
    for number, lag in late.items():
        log.add(due[number], lag, now - due[number], "", "ABANDONED")


def drive_closed(
    lines: Lines,
    log: Log,
    *,
    callers: int,
    until: float,
    timeout: float,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Keeps `callers` requests under way until a time of the monotonic clock, and waits for the answers.

    Args:
        lines: Where to.
        log: Gets one entry a request; it is due when its caller is free.
        callers: Requests under way at any time.
        until: Seconds of the monotonic clock.
        timeout: Seconds after `until`; what is unanswered then is logged as `ABANDONED`.
        stopped: Whether to end early.
    """
    clock = time.monotonic
    sent: dict[int, float] = {}
    waiting: deque[int] = deque(range(callers))
    following = callers
    asked = dict.fromkeys(waiting, clock())
    while (asked or sent) and (now := clock()) < until + timeout:
        if now >= until:
            for number in waiting:
                del asked[number]
            waiting.clear()
        while waiting and lines.ask(waiting[0]):
            number = waiting.popleft()
            sent[number] = asked.pop(number)
        ended = lines.exchange(min(0.1, max(0.0, until + timeout - now)))
        now = clock()
        for number, status in ended:
            if status == UNSEEN:
                asked[number] = sent.pop(number)
                waiting.append(number)
                continue
            begin = sent.pop(number)
            log.add(begin, 0.0, now - begin, "", status)
            if now < until:
                waiting.append(following)
                asked[following] = now
                following += 1
        if stopped():
            until = min(until, now)
    for number, begin in (sent | asked).items():
        log.add(begin, 0.0, clock() - begin, "", "ABANDONED" if number in sent else UNAVAILABLE)
