"""Somebody who asks a server in open loop, in a thread with an event loop of its own, and notes each reply.

    with asking(client_of("127.0.0.1:8001"), rate=200, seconds=10) as load:
        load.wait_until(3)
        ...
    assert percentile(load.between(3, 6), 99) < 0.1

A test that waits or starts processes does not disturb it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import hedgerow
import numpy as np
import numpy.typing as npt
from hedgerow_bench import mlp, open_loop, schedule
from server_process import HANG_SECONDS

#: What is asked unless a test brings its own: the bench's perceptron, which NumPy can compute too.
MODEL, SEED = "mlp", 1
#: Requests under way at most; one that comes due beyond them counts as `OVERFLOW`.
OUTSTANDING = 2000
#: In the place of a gRPC status: the reply holds other numbers than it should.
WRONG = "WRONG"

#: Asks once, for the n-th request; raises a HedgerowError for what failed.
Ask = Callable[[int], Awaitable[hedgerow.InferResult]]


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked, and what is right.

    Attributes:
        model: Who is asked.
        inputs: Tensors of the n-th request, in turn.
        outputs: The right answers to them.
    """

    model: str
    inputs: Sequence[Mapping[str, npt.NDArray[Any]]]
    outputs: Sequence[Mapping[str, npt.NDArray[Any]]]

    def right(self, number: int, reply: hedgerow.InferResult) -> bool:
        """Whether the n-th reply holds what NumPy says, up to rounding."""
        wanted = self.outputs[number % len(self.outputs)]
        return all(
            reply[name].shape == array.shape and np.allclose(reply[name], array, rtol=1e-3, atol=1e-3)
            for name, array in wanted.items()
        )


def perceptron_questions(count: int = 256) -> Questions:
    """Rows for the perceptron, one a request."""
    rows = np.random.default_rng(0).normal(size=(count, 1, mlp.WIDTH)).astype(np.float32)
    return Questions(
        MODEL, [{mlp.INPUT: row} for row in rows], [{mlp.OUTPUT: mlp.answer(row, SEED)} for row in rows]
    )


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one request.

    Attributes:
        due: Seconds after the start of the load.
        lag: Seconds by which the asker itself was late.
        latency: Seconds from when it was due to its end, also if it was sent late.
        code: A gRPC status, `WRONG`, `OVERFLOW` (not sent, too many were under way), or `ABANDONED` (still
            without an end long after the timeout).
        outcome: Who answered: `primary`, `hedge`, `failover`, `fallback`; "" if nobody did.
        parameters: Of the reply, such as `hedgerow_region`.
        details: Of an error.
    """

    due: float
    lag: float
    latency: float
    code: str
    outcome: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    details: str = ""


@contextlib.asynccontextmanager
async def client_of(
    target: str,
    questions: Questions | None = None,
    *,
    timeout: float = 1.0,  # noqa: ASYNC109 - of each call
    **options: Any,
) -> AsyncIterator[Ask]:
    """Asks by a `hedgerow.AsyncClient`, which tries once unless told otherwise.

    Args:
        target: `host:port`.
        questions: None: those of the perceptron.
        timeout: Seconds for each request.
        options: The client's other arguments.
    """
    asked = questions or perceptron_questions()
    async with hedgerow.AsyncClient(target, timeout=timeout, **{"retries": 0, **options}) as client:

        async def ask(number: int) -> hedgerow.InferResult:
            return await client.infer(asked.model, asked.inputs[number % len(asked.inputs)])

        yield ask


class Load:
    """Asks in open loop, at the times of a Poisson process fixed beforehand; use by `asking`."""

    def __init__(
        self,
        opened: AbstractAsyncContextManager[Ask],
        questions: Questions,
        rate: float,
        seconds: float,
        timeout: float,
        seed: int,
    ) -> None:
        self._opened = opened
        self._questions = questions
        self._due = schedule.offsets(rate, seconds, "poisson", np.random.default_rng(seed))
        self._timeout = timeout
        self._records: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._failures: list[BaseException] = []
        self._began = threading.Event()
        self._start = 0.0
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._work, name="asker", daemon=True)
        #: By due time; complete when the `with` has ended.
        self.records: list[Record] = []

    @property
    def due(self) -> int:
        """How many requests there are."""
        return len(self._due)

    def now(self) -> float:
        """Seconds since the start; records are due on this clock."""
        return time.monotonic() - self._start

    def wait_until(self, seconds: float) -> float:
        """Sleeps until so long after the start; returns when it was."""
        time.sleep(max(0.0, seconds - self.now()))
        return self.now()

    def between(self, start: float, end: float) -> list[Record]:
        """The requests that were due in [start, end)."""
        return [record for record in self.records if start <= record.due < end]

    def __enter__(self) -> Self:
        self._thread.start()
        self._began.wait(HANG_SECONDS)
        self._raise_failure()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(max(0.0, float(self._due[-1]) - self.now()) + 3 * self._timeout + HANG_SECONDS)
        assert not self._thread.is_alive(), "the asker hangs"
        while not self._records.empty():
            self.records.append(self._records.get())
        self.records.sort(key=lambda record: record.due)
        if kind is None:
            self._raise_failure()

    def add(
        self, due: float, lag: float, latency: float, version: str, status: str, reply: Any = None
    ) -> None:
        """Called by the open loop, as the bench's log is; `reply` is what `_judged` found."""
        outcome, parameters, details = reply or ("", {}, "")
        self._records.put(Record(due - self._start, lag, latency, status, outcome, parameters, details))

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]

    def _work(self) -> None:
        try:
            asyncio.run(self._drive())
        except BaseException as error:  # noqa: BLE001 - raised again where the load is used
            self._failures.append(error)
        finally:
            self._began.set()

    async def _drive(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with self._opened as ask:
            self._start = time.monotonic() + 0.05
            self._began.set()
            await open_loop.drive(
                lambda number: self._judged(ask, number),
                (self._start + self._due).tolist(),
                self,
                outstanding=OUTSTANDING,
                timeout=self._timeout,
                stop=self._stop,
            )

    async def _judged(self, ask: Ask, number: int) -> tuple[Any, ...]:
        try:
            reply = await ask(number)
        except hedgerow.HedgerowError as error:
            return "", error.code.name, ("", {}, error.details)
        except Exception as error:
            self._failures.append(error)
            self._stop.set()
            raise
        code = "OK" if self._questions.right(number, reply) else WRONG
        return reply.model_version, code, (reply.outcome, dict(reply.parameters), "")


def asking(
    opened: AbstractAsyncContextManager[Ask],
    questions: Questions | None = None,
    *,
    rate: float,
    seconds: float,
    timeout: float = 1.0,
    seed: int = 0,
) -> Load:
    """Somebody who asks; `with` waits for the end of the schedule and the last reply.

    Args:
        opened: Opened and closed in the asker's event loop; gives who asks. `client_of`, or your own:
            what is raised other than a HedgerowError ends the load, and is raised at the end of the `with`.
        questions: By which replies are judged; None: those of the perceptron.
        rate: Requests per second.
        seconds: Length of the schedule.
        timeout: Seconds after which `ask` gives up by itself.
        seed: Of the schedule.
    """
    return Load(opened, questions or perceptron_questions(), rate, seconds, timeout, seed)


def codes(records: Iterable[Record]) -> dict[str, int]:
    """How many requests ended in each way."""
    return dict(Counter(record.code for record in records))


def outcomes(records: Iterable[Record]) -> dict[str, int]:
    """How many answers came from whom."""
    return dict(Counter(record.outcome for record in records if record.code == "OK"))


def percentile(records: Iterable[Record], percent: float) -> float:
    """Latency in seconds, failures included: a failure is not a fast answer."""
    return float(np.percentile([record.latency for record in records], percent))
