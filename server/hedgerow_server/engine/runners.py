"""Runs batches.

On the event loop where the model is faster than a change of thread, else in a
runner thread; there too where the graph has a loop, whose rounds may be many for
one request's values: a run on the event loop cannot be stopped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import onnxruntime as ort

from hedgerow_server.engine.execution import BatchShapeError, Ended, Outcome, execute, execute_short
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.work import Ran, Work
from hedgerow_server.gate.admission import Backlog, backlog

log = logging.getLogger(__name__)

#: What becomes of batches; on the loop's thread.
Finish = Callable[[Sequence[Ended]], None]
#: What becomes of a request that ran out of time while it waited.
Expire = Callable[[Work], None]

#: Inline runs of one model in one turn of the loop, in seconds; then everything else gets its turn.
INLINE_TURN_SECONDS = 0.005

#: Short runs of several models between two lots of answers, in seconds.
SHORT_SECONDS = 0.001

#: Seconds between two looks for requests that run out of time while all runners are busy.
SWEEP_SECONDS = 0.02


class Engine:
    """The runners of one process, shared by all models.

    Owns: the runner threads, which models wait for one, and the runs under way.

    Args:
        runners: threads; so many runs go on at once beside the loop.
        instances: runs of one model at once, as Triton's instance count. More than there are processors only
            make each of them longer, and what they keep in the processors' caches is each other's.
        inline_below: seconds; a run expected to be shorter happens on the loop.
            None: what a change of thread costs on this machine, measured at `start`.
    """

    def __init__(
        self, *, runners: int = 5, instances: int | None = None, inline_below: float | None = None
    ) -> None:
        self._runners = runners
        self._instances = min(instances or runners, runners)
        self._is_measured = inline_below is None
        #: Seconds; a run expected to be shorter happens on the loop.
        self.inline_below = inline_below or 0.0
        self._threads = ThreadPoolExecutor(runners, thread_name_prefix="runner")
        self._busy = 0
        # Models with requests that wait for a runner; the first is next.
        self._hungry: dict[Model, None] = {}
        # Models whose runs go on in the loop's next turn, or when their requests have waited for company.
        self._deferred: dict[Model, tuple[float, asyncio.Handle]] = {}
        self._runs: set[Run] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finish: Finish
        self._expire: Expire

    async def start(self, finish: Finish, expire: Expire) -> None:
        """Binds the engine to the running loop and measures what a change of thread costs.

        Args:
            finish: gets every batch back.
            expire: gets the requests whose time is over.
        """
        self._loop = asyncio.get_running_loop()
        self._finish = finish
        self._expire = expire
        if self._is_measured:
            hops = sorted([await self._hop() for _ in range(50)])
            # Twice the median: the loop's other requests wait during an inline
            # run, but a change of thread costs them processor time as well.
            self.inline_below = 2 * hops[len(hops) // 2]
            log.debug("runs below %.0f µs stay on the event loop", self.inline_below * 1e6)

    async def _hop(self) -> float:
        assert self._loop is not None
        began = time.perf_counter()
        await self._loop.run_in_executor(self._threads, _nothing)
        return time.perf_counter() - began

    def run_waiting(self, *models: Model) -> None:
        """Runs what waits for models, as far as runners are free."""
        now = began = time.monotonic()
        waiting: Sequence[Model] = models
        while waiting:
            # The next short batch of each, and what still waits behind it.
            short: list[tuple[Model, list[Work]]] = []
            behind: dict[Model, tuple[list[Work], float]] = {}
            seconds = 0.0
            for model in waiting:
                queue = model.queue
                while queue.length and (taken := self._take(model, now)) is not None:
                    batch, expected = taken
                    if not batch:
                        continue
                    if model.limit.threaded:
                        _sample(model, batch, now, expected)
                        self._start_run(model, batch)
                        continue
                    short.append((model, batch))
                    seconds += expected
                    if queue.length:
                        behind[model] = batch, expected
                    break
                if not queue.length and model.limit.is_open and not model.limit.threaded:
                    model.limit.emptied()
                if seconds > SHORT_SECONDS:
                    # Who is first need not wait for all.
                    self._run_short(short)
                    short, seconds = [], 0.0
            if short:
                self._run_short(short)
            waiting = list(behind)
            if waiting:
                now = time.monotonic()
                if now > began + INLINE_TURN_SECONDS:
                    for model, (batch, expected) in behind.items():
                        _sample(model, batch, now, expected)
                        self._defer(model, 0.0)
                    return

    def _take(self, model: Model, now: float) -> tuple[list[Work], float] | None:
        """The next batch of a model that is due and has a place to run, and how long that probably takes.

        The batch is empty where nobody in it waits any more. None: it must wait, and will be come back to.
        """
        queue = model.queue
        expected = model.latency.expect(queue.next_rows(now))
        if queue.waits and (due := queue.due(now, expected)) > now:
            self._defer(model, due)
            return None
        threaded = expected >= self.inline_below or model.loops
        if model.limit.threaded is not threaded:
            model.limit.move(threaded=threaded)
        if threaded and not self._may_start(model):
            self._hungry[model] = None
            self._watch()
            return None
        if (whole := queue.take_whole(now + expected)) is not None:
            return whole, expected
        batch, expired = queue.take(now, expected, model.latency.likely, model.latency.known)
        for work in expired:
            self._drop(model, work, now)
        return batch, expected

    def _run_short(self, batches: Sequence[tuple[Model, list[Work]]]) -> None:
        """Runs batches of several models on the loop."""
        ended = execute_short(batches)
        for model, _, result in ended:
            if isinstance(result, Ran):
                model.latency.observe(result.rows, result.run_ns * 1e-9)
            elif isinstance(result, BatchShapeError):
                _stop_batching(model, result)
        self._finish(ended)

    def _drop(self, model: Model, work: Work, now: float) -> None:
        """A request ran out of time while it waited: where that goes on, nothing runs or too much waits."""
        waited = now - work.queued_ns * 1e-9
        model.limit.sample(now, waited, model.latency.likely(work.rows), waited, 0, model.in_flight)
        self._expire(work)

    def backlog(self, model: Model, priority: int) -> Backlog:
        """What a request of this priority would find before it."""
        queue = model.queue
        run = model.latency.known(queue.typical_rows())
        if not model.limit.threaded:
            return backlog(queue.runs_ahead(priority), 1, 1, run)
        # Models that wait for runners take turns.
        slots = min(self._instances, self._runners / max(1, len(self._hungry) + (model not in self._hungry)))
        free = min(slots - model.running, self._runners - self._busy)
        return backlog(queue.runs_ahead(priority), free, max(1.0, slots), run)

    def _defer(self, model: Model, until: float) -> None:
        """Comes back to a model at a time on the loop's clock; in its next turn if that has passed."""
        assert self._loop is not None
        deferred = self._deferred.get(model)
        if deferred is not None:
            if deferred[0] <= until:
                return
            deferred[1].cancel()
        # uvloop's timers have whole milliseconds; a shorter wait takes one.
        self._deferred[model] = (until, self._loop.call_at(until, self._resume, model))

    def _resume(self, model: Model) -> None:
        self._deferred.pop(model, None)
        self.run_waiting(model)

    def _may_start(self, model: Model) -> bool:
        if self._busy >= self._runners or model.running >= self._instances:
            return False
        # One model may hold all runners but one: the last is for the others.
        others_run = self._busy > model.running or (self._hungry and next(iter(self._hungry)) is not model)
        return model.running < self._runners - 1 or self._runners == 1 or not others_run

    def _start_run(self, model: Model, batch: list[Work]) -> None:
        assert self._loop is not None
        run = Run(model, batch)
        # uvloop rounds to milliseconds; a run that is stopped early would count as a defect.
        run.timer = self._loop.call_at(max(work.deadline for work in batch) + 0.002, run.terminate)
        self._runs.add(run)
        self._busy += 1
        model.running += 1
        self._threads.submit(self._run_in_thread, run)

    def _run_in_thread(self, run: Run) -> None:
        busy_ns = time.thread_time_ns()
        outcomes = execute(run.model, run.batch, run.options)
        busy_ns = time.thread_time_ns() - busy_ns
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._end_run, run, outcomes, busy_ns)
        except RuntimeError:
            log.debug("a run of %r ended after its loop", run.model)

    def _end_run(self, run: Run, outcomes: list[Outcome], busy_ns: int) -> None:
        if run.timer is not None:
            run.timer.cancel()
        self._runs.discard(run)
        self._busy -= 1
        for _, result in outcomes:
            if isinstance(result, Ran):
                seconds = result.run_ns * 1e-9
                alone = busy_ns * 1e-9
                if alone < self.inline_below and run.model.is_single_threaded:
                    # Here it also waited for a processor and for the GIL, which it would not on the loop.
                    # Else a model of some microseconds that once came here would never go back.
                    seconds = min(seconds, alone)
                run.model.latency.ran(result.rows, seconds)
                run.model.latency.observe(result.rows, seconds)
            elif isinstance(result, BatchShapeError):
                _stop_batching(run.model, result)
        self._finish([(run.model, part, result) for part, result in outcomes])
        run.model.end_run()
        # Whoever waited longest gets the runner.
        for model in list(self._hungry):
            del self._hungry[model]
            self.run_waiting(model)
            if self._busy >= self._runners:
                break

    def give_up(self) -> list[Work]:
        """Takes every request that waits or runs and has not ended; somebody must tell them so.

        A run under way goes on until `stop_unwanted_runs`.
        """
        # Whatever waits longer than a turn of the loop is in one of the two.
        waiting = [work for model in (*self._hungry, *self._deferred) for work in model.queue.drain()]
        running = [work for run in self._runs for work in run.batch]
        return [work for work in (*waiting, *running) if not work.ended]

    def batch_of(self, work: Work) -> Sequence[Work]:
        """What shares a run under way with a request, itself included; nothing if it is in none."""
        return next((run.batch for run in self._runs if work in run.batch), ())

    def stop_unwanted_runs(self) -> None:
        """Terminates the runs whose every request has ended."""
        for run in self._runs:
            if all(work.ended for work in run.batch):
                run.terminate()

    def _watch(self) -> None:
        if self._sweep is None and self._loop is not None:
            self._sweep = self._loop.call_later(SWEEP_SECONDS, self._sweep_queues)

    def _sweep_queues(self) -> None:
        self._sweep = None
        now = time.monotonic()
        for model in list(self._hungry):
            for work in model.queue.expire(now):
                self._drop(model, work, now)
            if not len(model.queue):
                del self._hungry[model]
        if self._hungry:
            self._watch()

    async def close(self) -> None:
        """Terminates what still runs and ends the threads."""
        for run in self._runs:
            run.terminate()
        for _, timer in self._deferred.values():
            timer.cancel()
        if self._sweep is not None:
            self._sweep.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)


class Run:
    """A batch in a runner thread."""

    __slots__ = ("batch", "model", "options", "timer")

    def __init__(self, model: Model, batch: list[Work]) -> None:
        self.model = model
        self.batch = batch
        self.options = ort.RunOptions()
        self.timer: asyncio.TimerHandle | None = None

    def terminate(self) -> None:
        """Makes ONNX Runtime give up between two nodes of the graph."""
        self.options.terminate = True


def _stop_batching(model: Model, error: BatchShapeError) -> None:
    if model.batches:
        log.warning("%r: %s; its requests run one by one from now on", model, error)
    model.batches = False


def _sample(model: Model, batch: Sequence[Work], now: float, expected: float) -> None:
    """Tells the model's limit of a run that begins.

    The last of a batch has waited least. With priorities that says nothing of those who are passed over.
    """
    last = (model.queue.oldest() if model.is_prioritized else None) or batch[-1]
    queued = last.queued_ns * 1e-9
    model.limit.sample(now, now - queued, expected, last.deadline - queued, len(batch), model.in_flight)


def _nothing() -> None:
    """What the measured change of thread carries."""
