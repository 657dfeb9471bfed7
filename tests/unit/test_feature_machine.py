"""No sequence of writes, reads, expiries and outages returns a value past its bound, or marks one wrongly."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import feature_reads
import looptime
from feature_reads import DEFAULT, Request, Server
from hedgerow_protos.breaker import State
from hedgerow_server.features.clock import Clock
from hedgerow_server.features.memory import Fault, MemoryCache, MemoryStore
from hedgerow_server.features.sources import Row
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

TTL, STALE_TTL, MAX_AGE = 10.0, 60.0, 120.0
BUDGET = 0.05
EPOCH = 1_700_000_000.0
#: What clocks of two servers may differ by, and what microseconds and timers round.
SKEW, ROUNDING = 1.0, 0.002
#: Seconds after which a store that is well must be known to be so: an open breaker, its probes.
RECOVERY = 10.0
TAILS = ("N1", "N2", "N3")

tails = st.lists(st.sampled_from(TAILS), min_size=1, max_size=3)
servers = st.sampled_from([0, 1])


@dataclass
class Truth:
    """What the store said of an entity from `since` to `until`; `value` None: nothing."""

    value: float | None
    event: float
    since: float
    until: float = float("inf")


class FeatureMachine(RuleBasedStateMachine):
    """Two servers share a store and a cache, all of which fail as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = looptime.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.clock = Clock(self.loop.time, lambda: EPOCH + self.loop.time())
        self.store = MemoryStore()
        self.cache = MemoryCache(self.loop.time)
        self.spec = feature_reads.view(ttl=TTL, stale_ttl=STALE_TTL, max_age=MAX_AGE)
        self.truths: dict[str, list[Truth]] = {tail: [Truth(None, 0.0, -1e9)] for tail in TAILS}
        self.written = 0
        self.wrong: list[AssertionError] = []
        self.store_well_since = -1e9
        self.servers = [self.start(), self.start()]

    def start(self) -> Server:
        return Server(
            self.spec,
            store=self.store,
            cache=self.cache,
            clock=self.clock,
            on_reply=self.keep,
            budget_ms=BUDGET * 1000,
        )

    # ------------------------------------------------------------- the world

    @rule(seconds=st.sampled_from([0.003, 0.3, 1.0, 5.0, 9.5, 11.0, 49.0, 61.0, 130.0]))
    def wait(self, seconds):
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule(tail=st.sampled_from(TAILS), event_age=st.sampled_from([0.0, 30.0, 100.0, 200.0, -5.0]))
    def write(self, tail, event_age):
        self.written += 1
        now = self.loop.time()
        self.change(tail, Truth(float(self.written), now - event_age, now))
        event_us = round((EPOCH + now - event_age) * 1e6)
        self.store.rows["plane_profile@1", tail.encode()] = Row(
            feature_reads.row(float(self.written)), event_us
        )

    @rule(tail=st.sampled_from(TAILS))
    def delete(self, tail):
        self.change(tail, Truth(None, 0.0, self.loop.time()))
        self.store.rows.pop(("plane_profile@1", tail.encode()), None)

    def change(self, tail: str, truth: Truth) -> None:
        self.truths[tail][-1].until = truth.since
        self.truths[tail].append(truth)

    @rule(fault=st.sampled_from(Fault), delay=st.sampled_from([0.0, 0.01, 0.2, 2.0]))
    def change_store(self, fault, delay):
        was_well = self.store_is_well()
        self.store.fault, self.store.delay = fault, delay
        if self.store_is_well() and not was_well:
            self.store_well_since = self.loop.time()

    def store_is_well(self) -> bool:
        return self.store.fault is Fault.NONE and self.store.delay == 0

    @rule(fault=st.sampled_from(Fault), delay=st.sampled_from([0.0, 0.01, 0.2]))
    def change_cache(self, fault, delay):
        self.cache.fault, self.cache.delay = fault, delay

    @rule()
    def all_well(self):
        self.change_store(Fault.NONE, 0.0)
        self.change_cache(Fault.NONE, 0.0)

    @rule(tail=st.sampled_from(TAILS), junk=st.sampled_from([b"", b"HF" + bytes(40), b"HF\x01\x01" * 9]))
    def corrupt(self, tail, junk):
        self.cache.values[self.key(tail)] = junk, float("inf")

    @rule(
        fault=st.sampled_from([Fault.DOWN, Fault.HANGS]),
        cache=st.sampled_from(Fault),
        seconds=st.sampled_from([0.3, 9.0, 12.0, 50.0, 62.0, 90.0, 125.0]),
    )
    def change_everything_while_the_store_is_out(self, fault, cache, seconds):
        """What was known is then true no longer, and grows old."""
        for server in (0, 1):
            self.finish(self.submit(server, [list(TAILS)], 10.0))
        self.change_store(fault, 0.0)
        for tail in TAILS:
            self.write(tail, 0.0)
        self.change_cache(cache, 0.0)
        self.wait(seconds)
        for server in (0, 1):
            self.finish(self.submit(server, [[tail] for tail in TAILS], 10.0))

    @rule()
    def recover(self):
        """A few seconds after the end of every outage, with some traffic, all is as it was."""
        self.all_well()
        for _ in range(6):
            self.loop.run_until_complete(asyncio.sleep(1.1))
            for server in (0, 1):
                self.finish(self.submit(server, [list(TAILS)], 10.0))
        for server in self.servers:
            for tail in TAILS:
                (request,) = self.submit(self.servers.index(server), [[tail]], 10.0)
                self.finish([request])
                truth = self.truths[tail][-1]
                if truth.since < self.loop.time() - TTL - SKEW and truth.value is not None:
                    old = self.loop.time() - truth.event > MAX_AGE - SKEW
                    assert old or request.freshness == "fresh"

    @rule()
    def empty_cache(self):
        self.cache.values.clear()

    @rule(tail=st.sampled_from(TAILS), skew=st.floats(-30, SKEW))
    def write_from_a_server_with_another_clock(self, tail, skew):
        truth = self.truths[tail][-1]
        packed = self.servers[0].view.cached.pack(
            round((EPOCH + self.loop.time() + skew) * 1e6),
            round((EPOCH + truth.event) * 1e6),
            None if truth.value is None else feature_reads.row(truth.value),
        )
        self.cache.values[self.key(tail)] = packed, self.loop.time() + STALE_TTL

    def key(self, tail: str) -> bytes:
        return self.servers[0].view.prefix + tail.encode()

    @rule(server=servers)
    def restart(self, server):
        old, self.servers[server] = self.servers[server], self.start()
        self.loop.run_until_complete(old.close())

    # ----------------------------------------------------------------- reads

    @rule(server=servers, batch=st.lists(tails, min_size=1, max_size=3), impatient=st.booleans())
    def read(self, server, batch, impatient):
        timeout = 0.03 if impatient else 10.0
        self.finish(self.submit(server, batch, timeout))

    @rule(batch=st.lists(tails, min_size=1, max_size=3), give_up=st.booleans())
    def read_at_both_and_perhaps_give_one_up(self, batch, give_up):
        first = self.submit(0, batch, 10.0)
        self.loop.run_until_complete(asyncio.sleep(0))
        second = self.submit(1, batch, 10.0)
        if give_up and first[0].answered is None:
            first[0].ended = True
            self.finish(first[1:] + second)
            assert first[0].answered is None
        else:
            self.finish(first + second)

    def submit(self, server: int, batch: Sequence[list[str]], timeout: float) -> list[Request]:
        async def submit() -> list[Request]:
            return self.servers[server].submit(*batch, timeout=timeout)

        return self.loop.run_until_complete(submit())

    def finish(self, requests: Sequence[Request]) -> None:
        self.loop.run_until_complete(asyncio.sleep(BUDGET + 2 * ROUNDING))
        if self.wrong:
            raise self.wrong[0]
        for request in requests:
            assert request.answered is not None, "every request is answered within the budget"

    # --------------------------------------------------------------- verdicts

    def keep(self, request: Request) -> None:
        """Judges a reply as it comes; `finish` raises what is wrong, as a loop only logs it."""
        try:
            self.judge(request)
        except AssertionError as error:
            self.wrong.append(error)

    def judge(self, request: Request) -> None:
        now = self.loop.time()
        allowed = min(BUDGET, (request.deadline - request.began) / 2)
        assert now - request.began <= allowed + ROUNDING
        marks = [
            self.mark(tail, float(value[0]), now, request)
            for tail, value in zip(request.tails, request.values, strict=True)
        ]
        if "default" in marks:
            assert request.freshness == "default", marks
        else:
            assert request.freshness != "default", marks
            # The worst of several: whether each could be fresh or stale is in its marks.
            if request.freshness == "fresh":
                assert all("fresh" in mark for mark in marks), marks
            else:
                assert any("stale" in mark for mark in marks), marks

    def mark(self, tail: str, value: float, now: float, request: Request) -> str:
        """How this value may be marked, after the check that it may be served at all."""
        truths = self.truths[tail]
        patient = request.deadline - request.began > 1
        must_be_good = (
            self.store_is_well()
            and now - self.store_well_since > RECOVERY
            and patient
            and all(server.joining.breakers["feature_store"].state is State.CLOSED for server in self.servers)
            and truths[-1].since < now - TTL - SKEW
            and truths[-1].value is not None
            and now - truths[-1].event < MAX_AGE - SKEW
        )
        if value == DEFAULT:
            assert not must_be_good, f"{tail}: the default, though the store has a row and is well"
            return "default"
        (truth,) = [truth for truth in truths if truth.value == value]
        age = now - min(truth.until, now)
        assert age <= STALE_TTL + SKEW + ROUNDING, f"{tail}: past its stale_ttl, {age} s"
        assert now - truth.event <= MAX_AGE + ROUNDING, f"{tail}: past its max_age"
        if must_be_good:
            return "fresh"
        if age > TTL + SKEW + ROUNDING:
            return "stale"
        return "fresh or stale"

    def teardown(self):
        for server in self.servers:
            self.loop.run_until_complete(server.close())
            assert not server.joining.joiner.waiting
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()
        asyncio.set_event_loop(None)


FeatureMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestFeatureMachine = FeatureMachine.TestCase
