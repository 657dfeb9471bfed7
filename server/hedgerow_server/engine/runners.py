"""Runs batches.

On the event loop where the model is faster than a change of thread, else in a
runner thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import onnxruntime as ort

from hedgerow_server.engine.buffers import BoundRuns
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.work import Ran, Work, assemble
from hedgerow_server.gate.admission import Backlog, backlog

log = logging.getLogger(__name__)

#: What becomes of each batch; on the loop's thread. A failed run is told as its exception.
Finish = Callable[[Model, Sequence[Work], Ran | Exception], None]
#: What becomes of a request that ran out of time while it waited.
Expire = Callable[[Work], None]

#: Inline runs of one model in one turn of the loop, in seconds; then everything else gets its turn.
INLINE_TURN_SECONDS = 0.005

#: Seconds between two looks for requests that run out of time while all runners are busy.
SWEEP_SECONDS = 0.02


class BatchShapeError(Exception):
    """The model did not give one row for each row it got."""


class Engine:
    """The runners of one process, shared by all models.

    Owns: the runner threads, which models wait for one, and the runs under way.

    Args:
        runners: threads; so many runs go on at once beside the loop.
        inline_below: seconds; a run expected to be shorter happens on the loop.
            None: what a change of thread costs on this machine, measured at `start`.
    """

    def __init__(self, *, runners: int = 5, inline_below: float | None = None) -> None:
        self._runners = runners
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

    def run_waiting(self, model: Model) -> None:
        """Runs what waits for `model`, as far as runners are free."""
        queue = model.queue
        now = began = time.monotonic()
        while queue.length:
            expect = model.latency.expect
            expected = expect(queue.next_rows(now))
            if queue.waits and (due := queue.due(now, expected)) > now:
                self._defer(model, due)
                return
            inline = expected < self.inline_below
            if not inline and not self._may_start(model):
                self._hungry[model] = None
                self._watch()
                return
            batch, expired = queue.take(now, expected, model.latency.likely)
            for work in expired:
                self._drop(model, work, now)
            if batch:
                if model.limit.threaded is inline:
                    model.limit.move(threaded=not inline)
                if inline:
                    self._conclude(model, execute(model, batch, None))
                else:
                    _sample(model, batch, now, expected)
                    self._start_run(model, batch)
            if queue.length:
                now = time.monotonic()
                if now > began + INLINE_TURN_SECONDS:
                    if batch and inline:
                        _sample(model, batch, now, expected)
                    self._defer(model, 0.0)
                    return
        limit = model.limit
        if limit.is_open and not limit.threaded:
            limit.emptied()

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
        slots = self._runners / max(1, len(self._hungry) + (model not in self._hungry))
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
        # One model may hold all runners but one: the last is for the others.
        if self._busy >= self._runners:
            return False
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
        result = execute(run.model, run.batch, run.options)
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._end_run, run, result)
        except RuntimeError:
            log.debug("a run of %r ended after its loop", run.model)

    def _end_run(self, run: Run, result: list[tuple[list[Work], Ran | Exception]]) -> None:
        if run.timer is not None:
            run.timer.cancel()
        self._runs.discard(run)
        self._busy -= 1
        for _, ran in result:
            if isinstance(ran, Ran):
                run.model.latency.ran(ran.rows, ran.run_ns * 1e-9)
        self._conclude(run.model, result)
        run.model.end_run()
        # Whoever waited longest gets the runner.
        for model in list(self._hungry):
            del self._hungry[model]
            self.run_waiting(model)
            if self._busy >= self._runners:
                break

    def _conclude(self, model: Model, results: list[tuple[list[Work], Ran | Exception]]) -> None:
        for part, result in results:
            if isinstance(result, Ran):
                model.latency.observe(result.rows, result.run_ns * 1e-9)
            elif isinstance(result, BatchShapeError):
                if model.batches:
                    log.warning("%r: %s; its requests run one by one from now on", model, result)
                model.batches = False
            self._finish(model, part, result)

    def give_up(self) -> list[Work]:
        """Takes every request that waits or runs and has not ended; somebody must tell them so.

        A run under way goes on until `stop_unwanted_runs`.
        """
        # Whatever waits longer than a turn of the loop is in one of the two.
        waiting = [work for model in (*self._hungry, *self._deferred) for work in model.queue.drain()]
        running = [work for run in self._runs for work in run.batch]
        return [work for work in (*waiting, *running) if not work.ended]

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


def execute(
    model: Model, batch: list[Work], options: ort.RunOptions | None
) -> list[tuple[list[Work], Ran | Exception]]:
    """Runs a batch; if it fails as a whole, each of its requests alone.

    One request's values (an index out of range, say) can make the whole run
    fail; its companions must not notice.

    Returns:
        The parts of the batch, each with its run or the exception that ended it.
    """
    result = _execute_once(model, batch, options, model.bound if options is None else None)
    if isinstance(result, Ran) or len(batch) == 1 or (options is not None and options.terminate):
        return [(batch, result)]
    parts: list[tuple[list[Work], Ran | Exception]] = []
    for work in batch:
        # Not through the buffers: the next of these runs would overwrite what this one gave.
        alone = _execute_once(model, [work], options, None)
        if isinstance(result, BatchShapeError) and isinstance(alone, Ran):
            # Told once, so that the model stops batching.
            parts.append(([], result))
        parts.append(([work], alone))
    return parts


def _execute_once(
    model: Model, batch: Sequence[Work], options: ort.RunOptions | None, bound: BoundRuns | None
) -> Ran | Exception:
    began = time.perf_counter_ns()
    rows = 0
    for work in batch:
        work.started_ns = began
        rows += work.rows
    try:
        asked = batch[0].outputs
        if bound is not None and asked is None and rows <= bound.max_rows:
            # What fails here is run the ordinary way, which finds out why.
            with contextlib.suppress(Exception):
                bound.fill(batch)
                assembled = time.perf_counter_ns()
                outputs = bound.run(rows)
                return Ran(outputs, rows, assembled - began, time.perf_counter_ns() - assembled, fixed=True)
        feeds = assemble(model.signature, batch, rows)
        names = model.output_names if asked is None else [model.output_names[i] for i in asked]
        assembled = time.perf_counter_ns()
        outputs = model.run(names, feeds, options)
        ended = time.perf_counter_ns()
        if len(batch) > 1:
            for name, output in zip(names, outputs, strict=True):
                if not output.shape or output.shape[0] != rows:
                    return BatchShapeError(f"output {name!r} has shape {output.shape} for {rows} rows")
    except Exception as error:  # noqa: BLE001  ONNX Runtime's errors share no base class but Exception
        return error
    return Ran(outputs, rows, assembled - began, ended - assembled)


def _sample(model: Model, batch: Sequence[Work], now: float, expected: float) -> None:
    """Tells the model's limit of a run that begins: the last of a batch has waited least."""
    last = batch[-1]
    queued = last.queued_ns * 1e-9
    model.limit.sample(now, now - queued, expected, last.deadline - queued, len(batch), model.in_flight)


def _nothing() -> None:
    """What the measured change of thread carries."""
