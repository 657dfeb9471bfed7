"""What the tests of hedging share: regions in virtual time, all real but the runs and the other regions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import looptime
import numpy as np
from fakes_engine import Callers, KeptLog, Reply, model, request, table
from hedgerow_protos import serving_spec
from hedgerow_protos.breaker import Breaker
from hedgerow_protos.hedgerow_control_pb2 import HedgeMode, ServingSpec
from hedgerow_protos.hedging import ATTEMPT, FAILOVER, HEDGE, PREVIOUS_ATTEMPTS, REGION, Budget
from hedgerow_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse, ServerReadyResponse
from hedgerow_server.answer import Answerer
from hedgerow_server.call import Call, Metadata
from hedgerow_server.engine.model import QUARANTINE, Model
from hedgerow_server.engine.work import Ran, Work
from hedgerow_server.gate.deadlines import Deadlines
from hedgerow_server.resilience.backup import Backup
from hedgerow_server.resilience.hedger import Hedger
from hedgerow_server.resilience.rules import Rules

#: What the model answers here, and at a backup, and what its rules say where they can.
HERE, THERE, RULED = 1.0, 2.0, 3.0
NEVER = float("inf")
#: Seconds until a hedge.
AFTER = 0.03
#: How late a timer may be: a run is stopped 2 ms after its deadline.
LATE = 0.01


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop in virtual time. It does not begin at 0, which is "never" to some of the parts."""
    return looptime.new_event_loop(start=1000.0)


@dataclass(frozen=True)
class Ends:
    """How an attempt ends, and after how many seconds.

    `how`: answer; here also fail; at a backup also garbage, or a status.
    """

    how: str = "answer"
    after: float = 0.0


class ScriptedRuns:
    """Stands where the engine would: each run ends as the test says, at its deadline at the latest."""

    def __init__(self) -> None:
        self.plans: dict[int, Ends] = {}
        self.utilization = 0.0
        self.under_way: dict[Work, list[asyncio.TimerHandle]] = {}
        #: Runs that nobody waited for any more.
        self.stopped = 0
        self.answerer: Answerer

    def run_waiting(self, *models: Model) -> None:
        """Begins whatever waits, each request on its own."""
        for of in models:
            self._run(of)

    def _run(self, of: Model) -> None:
        loop = asyncio.get_running_loop()
        while of.queue.length:
            batch, expired = of.queue.take(loop.time())
            for work in expired:
                self.answerer.expire(work)
            for work in batch:
                work.started_ns = int(loop.time() * 1e9)
                plan = self.plans.get(work.token, Ends())  # type: ignore[attr-defined]  # all work here is a Call
                if plan.after == 0:
                    self._end(of, work, plan.how)
                    continue
                of.running += 1
                timers = [loop.call_at(work.deadline + 0.002, self._end, of, work, "fail")]
                if plan.after < NEVER:
                    timers.append(loop.call_later(plan.after, self._end, of, work, plan.how))
                self.under_way[work] = timers

    def _end(self, of: Model, work: Work, how: str) -> None:
        if work in self.under_way:
            self._forget(of, work)
        result: Ran | Exception = RuntimeError("the run failed")
        if how == "answer":
            result = Ran([np.full((work.rows, 1), HERE, np.float32)], work.rows, 0, 1000)
        self.answerer.finish([(of, [work], result)])

    def _forget(self, of: Model, work: Work) -> None:
        for timer in self.under_way.pop(work):
            timer.cancel()
        of.running -= 1

    def batch_of(self, work: Work) -> list[Work]:
        """Each runs alone."""
        return [work] if work in self.under_way else []

    def stop_unwanted_runs(self) -> None:
        """Ends the runs that nobody waits for."""
        for work in [work for work in self.under_way if work.ended]:
            self.stopped += 1
            self._forget(work.choice.model, work)  # type: ignore[attr-defined]  # as above

    def give_up(self) -> list[Work]:
        """All that is under way."""
        return [work for work in self.under_way if not work.ended]


class Region:
    """A channel to another region: what is asked there ends as the test says, behind a real `Backup`.

    Holds: what it was asked, and how many attempts are under way.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        #: What attempts meet, one after the other; the last goes on.
        self.plans: list[Ends] = [Ends(after=0.01)]
        #: What it says to a probe; None: nothing in time.
        self.ready: bytes | None = ServerReadyResponse(ready=True).SerializeToString()
        #: Behind every answer that it gives.
        self.said: dict[str, str] = {REGION: name}
        self.asked: list[tuple[float, ModelInferRequest, dict[str, Any]]] = []
        self.under_way = self.cancelled = self.probes = 0

    def unary_unary(self, method: str) -> Callable[..., _FakeCall]:
        """As a channel's."""
        work = self._infer if method.endswith("ModelInfer") else self._ready
        return lambda payload, *, timeout, metadata=(): _FakeCall(self, work(payload, timeout, metadata))

    async def _ready(self, payload: bytes, within: float, metadata: Metadata) -> bytes:
        self.probes += 1
        if self.ready is None:
            await asyncio.sleep(within)
            raise self.status("DEADLINE_EXCEEDED")
        return self.ready

    async def _infer(self, payload: bytes, within: float, metadata: Metadata) -> bytes:
        plan = self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]
        asked = ModelInferRequest.FromString(payload)
        self.asked.append((asyncio.get_running_loop().time(), asked, dict(metadata)))
        self.under_way += 1
        try:
            await asyncio.sleep(min(plan.after, within))
            if plan.after >= within:
                raise self.status("DEADLINE_EXCEEDED")
            if plan.how == "answer":
                return answer_of(asked, THERE)
            if plan.how == "garbage":
                return b"\xff\xff no reply"
            raise self.status(plan.how)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    def status(self, name: str) -> grpc.aio.AioRpcError:
        """A status, with what is said behind it."""
        trailing = grpc.aio.Metadata(*self.said.items())
        return grpc.aio.AioRpcError(grpc.StatusCode[name], grpc.aio.Metadata(), trailing, "as the test says")

    def kinds(self) -> list[str]:
        """Which attempts came: `hedge` or `failover`."""
        return [str(metadata[ATTEMPT]) for _, _, metadata in self.asked]

    async def close(self) -> None:
        """Has no connection."""


class _FakeCall:
    """As a call of grpc.aio: awaited once, cancelled with who awaits it."""

    def __init__(self, region: Region, work: Coroutine[Any, Any, bytes]) -> None:
        self._region = region
        self._work = work

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._work.__await__()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*self._region.said.items())


class KeptBudget(Budget):
    """A budget that remembers what was done to it, and when."""

    __slots__ = ("deposits", "sent")

    def __init__(self, share: float, burst: float) -> None:
        super().__init__(share, burst)
        #: Times of the requests that came, and of the tokens taken and not given back.
        self.deposits: list[float] = []
        self.sent: list[float] = []

    def deposit(self, requests: int = 1) -> None:
        """Also remembers them."""
        super().deposit(requests)
        self.deposits += [asyncio.get_running_loop().time()] * requests

    def withdraw(self) -> bool:
        """Also remembers it."""
        taken = super().withdraw()
        if taken:
            self.sent.append(asyncio.get_running_loop().time())
        return taken

    def refund(self) -> None:
        """Also forgets the last."""
        super().refund()
        self.sent.pop()

    def check(self) -> None:
        """No stretch of time has more attempts than its requests and a full budget allow."""
        for i, begin in enumerate(self.sent):
            for j in range(i, len(self.sent)):
                came = sum(begin <= at <= self.sent[j] for at in self.deposits)
                assert j - i + 1 <= self.burst + self.share * came + 1e-9, (begin, self.sent[j])


def answer_of(asked: ModelInferRequest, value: float, *, version: str = "1") -> bytes:
    """The reply of the zoo's `constant` to a request."""
    rows = asked.inputs[0].shape[0] if asked.inputs else 1
    reply = ModelInferResponse(
        model_name=asked.model_name, model_version=asked.model_version or version, id=asked.id
    )
    reply.outputs.add(name="y", datatype="FP32", shape=[rows, 1])
    reply.raw_output_contents.append(np.full((rows, 1), value, np.float32).tobytes())
    return reply.SerializeToString()


def ask(name: str = "m", *, rows: int = 1, value: float = 0.0, **options: Any) -> ModelInferRequest:
    """A request to the zoo's `constant`."""
    return request({"x": np.full((rows, 4), value, np.float32)}, name=name, **options)


def served(name: str = "m", version: str = "1", **hedging: Any) -> Model:
    """The zoo's `constant`, with a hedging of its own; its quarantine goes by the loop's clock."""
    made = model("constant", name, version, value=HERE)
    made.serving = ServingSpec()
    if "mode" in hedging:
        hedging["mode"] = HedgeMode.Value(f"HEDGE_MODE_{hedging['mode'].upper()}")
    for key, value in hedging.items():
        setattr(made.serving.hedging, key, value)
    made.breaker = Breaker(f"{name}@{version}", QUARANTINE, asyncio.get_running_loop().time)
    return made


def ruled(name: str = "m") -> Model:
    """The same, with a rule that answers `RULED` for a value of 1, and fails for one of 0."""
    made = served(name)
    text = f'fallback: {{rules: [{{name: only, outputs: {{y: "double({RULED:.0f} / int(x[0]))"}}}}]}}'
    made.serving.MergeFrom(serving_spec.parse(text, source="serving.yaml"))
    made.rules = Rules.compile(made.serving, made.signature)
    return made


@dataclass
class World:
    """One region that hedges to others."""

    models: Sequence[Model]
    #: What the backups lead to.
    regions: Sequence[Region]
    budget: KeptBudget
    hedger: Hedger
    answerer: Answerer
    runs: ScriptedRuns
    log: KeptLog = field(default_factory=KeptLog)
    callers: Callers = field(default_factory=Callers)
    calls: list[Call] = field(default_factory=list)
    #: When each call was answered, by its token.
    answered: dict[int, float] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        *models: Model,
        backups: int = 1,
        share: float = 1.0,
        burst: float = 10.0,
        after: float = AFTER,
        adaptive: bool = False,
    ) -> World:
        """Opens one on the running loop."""
        time = asyncio.get_running_loop().time

        def nanoseconds() -> int:
            return int(time() * 1e9)

        models = models or (served(),)
        regions = [Region(name) for name in ("west", "north", "south")[:backups]]
        budget = KeptBudget(share, burst)
        hedger = Hedger(
            [Backup(f"{each.name}:1", clock=time, channel=each) for each in regions],  # type: ignore[arg-type]  # the part of a channel that is used
            budget,
            after=after,
            adaptive=adaptive,
            clock=time,
            nanoseconds=nanoseconds,
        )
        log, runs = KeptLog(), ScriptedRuns()
        answerer = Answerer(
            runs,  # type: ignore[arg-type]  # as above
            log,
            deadlines=Deadlines(10, 60),
            max_message_bytes=1 << 20,
            region="east",
            clock=time,
            nanoseconds=nanoseconds,
        )
        runs.answerer = answerer
        answerer.hedge_with(hedger)
        answerer.use(table(*models))
        world = cls(models, regions, budget, hedger, answerer, runs, log)
        world.callers = _Callers(world)
        return world

    def call(
        self,
        payload: ModelInferRequest | bytes | None = None,
        here: Ends = Ends(),
        *,
        metadata: Mapping[str, str] | None = None,
        remaining: float | None = None,
    ) -> Call:
        """A call, and how it fares here."""
        made = self.callers.call(
            ask() if payload is None else payload,
            metadata=tuple((metadata or {}).items()),
            remaining=remaining,
        )
        made.received_ns = int(asyncio.get_running_loop().time() * 1e9)
        self.runs.plans[made.token] = here
        self.calls.append(made)
        return made

    def arrive(self, *calls: Call) -> None:
        """Calls that come in one turn of the loop."""
        self.answerer.answer(calls)

    async def ask(
        self,
        payload: ModelInferRequest | bytes | None = None,
        here: Ends = Ends(),
        **options: Any,
    ) -> Reply:
        """One call from beginning to end, of it and of all others."""
        call = self.call(payload, here, **options)
        self.arrive(call)
        await self.answerer.idle()
        return self.callers.of(call)

    def suppressed(self) -> dict[tuple[str, str], int]:
        """Attempts that were due and not made."""
        return dict(self.hedger.counts.suppressed)

    def outcomes(self) -> dict[tuple[str, str], int]:
        """Attempts that ended."""
        return dict(self.hedger.counts.outcomes)

    async def check_is_over(self, *, cancelled: Sequence[Call] = ()) -> None:
        """Everything came to one end, and nothing of it is left."""
        # What is left must be gone when all timers have had their time.
        await asyncio.sleep(2 * AFTER + 0.1)
        answerer, hedger = self.answerer, self.hedger
        assert answerer.in_flight == 0
        assert answerer._endings.held_bytes == 0
        assert answerer._fault is None or not answerer._fault.give_up()
        assert not answerer._endings.joining
        assert not answerer._fallback.is_busy
        assert not hedger._attempts
        assert not hedger._failed_here
        assert hedger._bytes == 0
        for line in hedger._watch._lines.values():
            assert not line.calls
            assert line.timer is None
        assert not self.runs.under_way
        for each in self.models:
            assert (each.in_flight, each.queue.length, each.running) == (0, 0, 0), each
        for region in self.regions:
            assert region.under_way == 0
        for breaker in hedger.breakers:
            assert breaker._probe is None
            assert all(token.ended for token in breaker._outstanding)
        loop = asyncio.get_running_loop()
        assert asyncio.all_tasks(loop) == {asyncio.current_task(loop)}
        assert all(timer.cancelled() for timer in loop._scheduled)  # type: ignore[attr-defined]
        assert all(call.ended for call in self.calls)
        self._check_each_once(cancelled)
        self._check_counts()

    def _check_each_once(self, cancelled: Sequence[Call]) -> None:
        # A second answer to one call fails in the sink.
        assert self.callers.replies.keys() == {call.token for call in self.calls if call not in cancelled}
        assert len(self.log.lines) == len(self.calls)
        counted = sum(self.answerer.books.unrouted.requests.values()) + sum(
            sum(each.statistics.requests.values()) for each in self.models
        )
        assert counted == len(self.calls)
        for call in self.calls:
            if call in cancelled:
                continue
            reply = self.callers.of(call)
            if not reply.payload:
                continue
            said = reply.response.parameters["hedgerow_outcome"].string_param
            value = {"": HERE, HEDGE: THERE, FAILOVER: THERE, "fallback": RULED}[said]
            assert set(reply.tensors["y"].ravel().tolist()) == {value}

    def _check_counts(self) -> None:
        self.budget.check()
        kinds = Counter(kind for region in self.regions for kind in region.kinds())
        # Every attempt that was sent ended once, and each hedge took one token.
        ended = Counter[str]()
        for (kind, _), count in self.hedger.counts.outcomes.items():
            ended[kind] += count
        assert ended == kinds
        assert kinds[HEDGE] == len(self.budget.sent)


class _Callers(Callers):
    """Also notes when."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def _take(self, call: Call, reply: Reply) -> None:
        super()._take(call, reply)
        self._world.answered[call.token] = asyncio.get_running_loop().time()


FOREIGN = {PREVIOUS_ATTEMPTS: "1", ATTEMPT: HEDGE}
