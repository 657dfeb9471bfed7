"""One model version in memory."""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np
import onnxruntime as ort
from hedgerow_protos.breaker import Breaker, Policy, State
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec

from hedgerow_server.engine import buffers
from hedgerow_server.engine.batching import BatchQueue, Wait, wait_of
from hedgerow_server.engine.buffers import BoundRuns
from hedgerow_server.engine.latency import LatencyModel
from hedgerow_server.engine.loading import LoadedModel
from hedgerow_server.engine.priorities import priorities_of
from hedgerow_server.engine.statistics import VersionStatistics
from hedgerow_server.engine.work import Work
from hedgerow_server.gate.concurrency import ConcurrencyLimit

log = logging.getLogger(__name__)

#: A version whose requests fail so often gets none for some seconds, then one at a time.
QUARANTINE = Policy(window=10.0, minimum=5, failed=0.5, open_for=2.0, probes=3)


class Model:
    """A version that is loaded and warm, the requests that wait for it, and what it has done.

    Holds: the session, the queue, the count of requests that chose this version
    and are not answered yet. Only the event loop's thread changes it.
    """

    def __init__(
        self, name: str, version: str, digest: str, loaded: LoadedModel, serving: ServingSpec
    ) -> None:
        self.name = name
        self.version = version
        self.digest = digest
        self.signature = loaded.signature
        self.serving = serving
        self.statistics = VersionStatistics()
        #: Requests that chose this version and have no answer yet.
        self.in_flight = 0
        #: Whether requests may share a run.
        self.batches = loaded.signature.max_batch_size > 1 and loaded.row_independent
        rows = loaded.signature.max_batch_size
        wait = wait_of(serving, rows) if self.batches else Wait()
        self.priorities = priorities_of(serving)
        self.is_prioritized = self.priorities.levels > 1
        self.queue: BatchQueue[Work] = BatchQueue(
            rows if self.batches else 1, wait, prioritized=self.is_prioritized
        )
        #: How many requests may be under way.
        self.limit = ConcurrencyLimit(company=wait.seconds)
        #: What answers where the model cannot.
        self.rules = loaded.rules
        self.latency = LatencyModel(first_guess=loaded.warm_seconds)
        #: Runs may take any time, whatever earlier ones took: never on the event loop.
        self.loops = loaded.loops
        #: Open while the version is in quarantine: too many of its runs failed.
        self.breaker = Breaker(f"{name}@{version}", QUARANTINE, time.monotonic, _say)
        #: Runs under way in runner threads.
        self.running = 0
        #: Whether a run happens in the thread that asks for it, all of it.
        self.is_single_threaded = serving.session.intra_op_threads <= 1
        self.output_names = [output.name for output in loaded.signature.outputs]
        self._session: ort.InferenceSession | None = loaded.session
        #: Runs on the event loop's thread through buffers that stay; None where sizes vary.
        self.bound = self._bind(loaded.session)
        self._idle: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        state = (
            "closed" if self._session is None else f"{self.in_flight} in flight, {len(self.queue)} waiting"
        )
        return f"<Model {self.name}@{self.version} {state}>"

    def _bind(self, session: ort.InferenceSession) -> BoundRuns | None:
        rows = self.signature.max_batch_size if self.batches else 1
        return BoundRuns(session, self.signature, rows) if buffers.fits(self.signature, rows) else None

    def run(
        self, outputs: list[str], feeds: dict[str, np.ndarray], options: ort.RunOptions | None
    ) -> list[np.ndarray]:
        """Runs the session; blocks, and releases the GIL meanwhile."""
        session = self._session
        if session is None:
            raise RuntimeError(f"{self!r} was run after it was closed")
        result: list[np.ndarray] = session.run(outputs, feeds, options)
        return result

    def release(self, requests: int = 1) -> None:
        """Ends the hold of so many requests on this version."""
        self.in_flight -= requests
        if self._idle:
            self._tell_if_idle()

    def end_run(self) -> None:
        """Ends a run in a runner thread."""
        self.running -= 1
        if self._idle:
            self._tell_if_idle()

    def _tell_if_idle(self) -> None:
        if not self.in_flight and not self.running:
            for waiter in self._idle:
                if not waiter.done():
                    waiter.set_result(None)
            self._idle.clear()

    async def drained(self) -> None:
        """Returns when no request and no run holds this version."""
        while self.in_flight or self.running:
            waiter = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter

    def shift(self, session: ort.InferenceSession, latency: LatencyModel) -> None:
        """Runs that begin from now on happen in another session of the same model.

        Those under way end in the one they began in. `latency` is what is known of the new one.
        """
        if self._session is not None:
            self._session = session
            self.bound = self._bind(session)
            self.latency = latency

    def close(self) -> None:
        """Lets the session go; its memory returns when the last run has ended."""
        self._session = self.bound = None


def _say(breaker: Breaker) -> None:
    if breaker.state is State.OPEN and not breaker.reopened:
        log.error("%s is in quarantine until it answers probes again: %s", breaker.name, breaker.reason)
    elif breaker.state is State.CLOSED:
        log.warning("%s is out of quarantine", breaker.name)
