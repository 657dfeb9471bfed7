"""Threads for loads: one each, out of the way of the event loop, and never in the way of the next load."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import ParamSpec, TypeVar

from hedgerow_server.engine import memory
from hedgerow_server.scheduling import NICE, be_nice

P = ParamSpec("P")
T = TypeVar("T")


class TooManyHang(Exception):
    """So many loads have not returned that no more are begun."""


class LoaderThreads(Executor):
    """Runs each piece of work in a thread of its own, at low priority.

    A load cannot be stopped, only given up, and one that hangs inside ONNX
    Runtime keeps its thread for ever. In a pool a few of those would stop all
    loads, and the interpreter would wait for them at its end. So here each has
    its own, which nobody waits for; and their number is bounded.

    Holds: how many have not returned.

    Args:
        most: loads that have not returned, hung ones included; more are refused.
        nice: priority of the threads, where the system has one for each thread (Linux).
        giving_back: is told of each load, which frees as much as it keeps.
    """

    def __init__(
        self, most: int = 8, nice: int = NICE, giving_back: memory.GivingBack = memory.GIVING_BACK
    ) -> None:
        self._most = most
        self._nice = nice
        self._giving_back = giving_back
        self._lock = threading.Lock()
        self._under_way = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begins work in a new thread.

        Raises:
            TooManyHang: earlier work has not returned.
        """
        with self._lock:
            if self._under_way >= self._most:
                raise TooManyHang(
                    f"{self._under_way} earlier loads have not returned; "
                    "restart this server, and find out which model hangs it from the log"
                )
            self._under_way += 1
        future: Future[T] = Future()
        work = partial(fn, *args, **kwargs)
        threading.Thread(target=self._run, args=([future], [work]), daemon=True, name="loader").start()
        return future

    def _run(self, futures: list[Future[T]], works: list[Callable[[], T]]) -> None:
        be_nice(self._nice)
        memory.anchor(threading.current_thread())
        self._work(futures.pop(), works.pop())
        # Here nothing of it is held any more.
        self._giving_back.ask()

    def _work(self, future: Future[T], work: Callable[[], T]) -> None:
        conclude: Callable[[], None] | None = None
        try:
            with self._giving_back.at_work():
                if future.set_running_or_notify_cancel():
                    conclude = partial(future.set_result, work())
        except BaseException as error:  # noqa: BLE001  it goes to whoever waits for the future
            conclude = partial(future.set_exception, error)
        # Before anybody hears of it: who does may begin the next load at once.
        with self._lock:
            self._under_way -= 1
        try:
            if conclude is not None:
                conclude()
        finally:
            del future, work, conclude  # the error's traceback holds this frame
