"""Attempts in every order: whatever ends when, a call has one outcome, and nothing of it is left."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace

import grpc
import hedging_world
import pytest
from hedgerow_protos.hedging import LOAD, PUSHBACK
from hedgerow_server.call import Call
from hedgerow_server.resilience.fault import FaultInjection
from hedging_world import FOREIGN, LATE, NEVER, Ends, World, ask, ruled, served
from hypothesis import given, settings
from hypothesis import strategies as st

STATUSES = {grpc.StatusCode[name] for name in ("OK", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED")}
#: What requests ask for, and the status without any backup where that is not the model's.
ASKED = {
    "m": lambda: ask("m"),
    "same": lambda: ask("same"),  # only this version may answer at a backup
    "alone": lambda: ask("alone"),  # never goes anywhere
    "adaptive": lambda: ask("adaptive"),
    "elsewhere": lambda: ask("elsewhere"),  # not loaded here
    "version": lambda: ask("m", version="7"),
    "wrong": lambda: ask("m", outputs=["nothing"]),
    "ruled": lambda: ask("ruled", value=1.0),
    "unruly": lambda: ask("ruled", value=0.0),  # the rule fails
    "many": lambda: ask("ruled", value=1.0, rows=MANY),  # so many that it takes several turns of the loop
    "unruly many": lambda: ask("ruled", value=0.0, rows=MANY),
}
#: Rows of which rules answer a part in each turn.
MANY = 240
#: Moments that make ties and near misses: the delay is 30 ms, run timers add 2.
MOMENTS = (0.0, 0.001, 0.01, 0.029, 0.03, 0.031, 0.04, 0.05, 0.06, 0.09, NEVER)


@dataclass(frozen=True)
class Ask:
    """One call: when it comes, how it fares here, and when its caller leaves."""

    at: float
    kind: str
    here: Ends
    remaining: float
    leaves: float
    foreign: bool


@dataclass(frozen=True)
class Schedule:
    """Everything that happens."""

    asks: tuple[Ask, ...]
    #: Of each backup, what its attempts meet one after the other.
    regions: tuple[tuple[Ends, ...], ...]
    said: tuple[tuple[str, str], ...]
    burst: int
    share: float
    drains: float
    probes: bool
    faults: bool
    seed: int


moments = st.sampled_from(MOMENTS)
rarely = st.sampled_from([NEVER] * 40 + [*MOMENTS])
here = st.builds(Ends, st.sampled_from(["answer", "fail"]), st.sampled_from([*MOMENTS, NEVER, NEVER, NEVER]))
there = st.builds(
    Ends,
    st.sampled_from([
        *["answer"] * 5, "garbage", "UNAVAILABLE", "INTERNAL", "NOT_FOUND", "RESOURCE_EXHAUSTED",
        "INVALID_ARGUMENT",
    ]),
    moments,
)  # fmt: skip
asks = st.builds(
    Ask,
    at=moments.map(lambda at: min(at, 0.1)),
    kind=st.sampled_from([*["m"] * 14, *["ruled"] * 3, *ASKED]),
    here=here,
    remaining=st.sampled_from([0.005, 0.03, 0.032, 0.05, *[0.1] * 5, *[1.0] * 5]),
    leaves=rarely,
    foreign=st.sampled_from([False] * 9 + [True]),
)
schedules = st.builds(
    Schedule,
    asks=st.lists(asks, min_size=1, max_size=7).map(tuple),
    regions=st.lists(st.lists(there, min_size=1, max_size=4).map(tuple), min_size=1, max_size=3).map(tuple),
    said=st.sampled_from([
        *[()] * 6, ((PUSHBACK, "20"),), ((PUSHBACK, "-1"),), ((LOAD, "TEXT application_utilization=0.5"),),
        ((LOAD, "TEXT application_utilization=0.9"),),
    ]),
    burst=st.integers(1, 4),
    share=st.sampled_from([0.02, 1.0]),
    drains=rarely,
    probes=st.booleans(),
    faults=st.booleans(),
    seed=st.integers(0, 3),
)  # fmt: skip


def play(schedule: Schedule) -> World:
    """Lets a schedule happen, and checks what must hold however it goes."""
    with asyncio.Runner(loop_factory=hedging_world.new_loop) as runner:
        return runner.run(_play(schedule))


async def _play(schedule: Schedule) -> World:
    world = World.open(
        served(),
        served("same", versions=2),
        served("alone", mode="disabled"),
        served("adaptive", mode="adaptive"),
        ruled("ruled"),
        backups=len(schedule.regions),
        burst=schedule.burst,
        share=schedule.share,
    )
    for region, plans in zip(world.regions, schedule.regions, strict=True):
        region.plans = list(plans)
        region.said |= dict(schedule.said)
    if schedule.faults:
        chance = random.Random(schedule.seed).random
        world.answerer.harm_with(
            FaultInjection(delay_percent=30, delay=0.04, abort_percent=20, chance=chance)
        )
    time = asyncio.get_running_loop().time
    began = time()
    came: dict[Call, tuple[float, Ask]] = {}
    cancelled: list[Call] = []

    async def one(plan: Ask) -> None:
        await asyncio.sleep(plan.at)
        call = world.call(
            ASKED[plan.kind](),
            plan.here,
            remaining=plan.remaining,
            metadata=FOREIGN if plan.foreign else None,
        )
        came[call] = time(), plan
        if plan.leaves == 0:
            call.ended = True  # given up before the request path saw it
            cancelled.append(call)
        world.arrive(call)
        if 0 < plan.leaves < NEVER:
            await asyncio.sleep(plan.leaves)
            if not call.ended:
                cancelled.append(call)
            world.answerer.cancel(call)

    async def drain() -> None:
        if schedule.drains < NEVER:
            await asyncio.sleep(schedule.drains)
            world.answerer.draining = True
            await asyncio.sleep(0.02)
            world.answerer.abandon()

    probing = asyncio.create_task(world.hedger.run()) if schedule.probes else None
    async with asyncio.TaskGroup() as group:
        for plan in schedule.asks:
            group.create_task(one(plan))
        group.create_task(drain())
    await world.answerer.idle()
    if probing is not None:
        probing.cancel()
        await asyncio.wait([probing])
    await world.check_is_over(cancelled=cancelled)
    for call, (at, plan) in came.items():
        if call in cancelled:
            continue
        reply = world.callers.of(call)
        drained = world.answerer.draining
        _check_status(plan, reply.code, drained=drained)
        took = world.answered[call.token] - at
        if not schedule.faults:
            assert took <= plan.remaining + LATE, "told after its time"
        # Backups make no answer later or worse than the one here.
        if plan.kind in {"ruled", "many"} and not (drained or plan.foreign or schedule.faults):
            assert reply.code is grpc.StatusCode.OK, "rules answer what nobody else does"
            assert took <= plan.remaining
        is_served = plan.kind not in {"elsewhere", "version", "wrong"} and not any(
            each.breaker.trips for each in world.models
        )
        answers = plan.here.how == "answer" and plan.here.after < plan.remaining
        if is_served and answers and not schedule.faults and at + plan.here.after < began + schedule.drains:
            assert reply.code is grpc.StatusCode.OK
            assert took <= plan.here.after + 1e-3
    await world.hedger.close()
    return world


def _check_status(plan: Ask, code: grpc.StatusCode, *, drained: bool) -> None:
    if plan.kind == "wrong":
        assert code is grpc.StatusCode.INVALID_ARGUMENT or drained
    elif plan.kind in {"elsewhere", "version"}:
        assert code in {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND} or drained
    else:
        assert code in STATUSES


@pytest.mark.timeout(600)
@settings(max_examples=1500, deadline=None)
@given(schedule=schedules)
def test_every_call_has_one_outcome_and_leaves_nothing(schedule: Schedule) -> None:
    """Thousands of schedules: answers, failures and silence here and there, callers that leave, drains."""
    play(replace(schedule, faults=False))


@pytest.mark.timeout(600)
@settings(max_examples=700, deadline=None)
@given(schedule=schedules)
def test_nor_do_they_where_faults_are_made_on_purpose(schedule: Schedule) -> None:
    """Calls that are held up or fail before the model gets them."""
    play(replace(schedule, faults=True))
