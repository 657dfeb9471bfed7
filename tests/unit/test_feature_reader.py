"""What one server remembers, believes and writes, case by case in virtual time."""

from __future__ import annotations

import asyncio

import feature_reads
import pytest
from feature_reads import DEFAULT, Request, Server
from hedgerow_protos.breaker import State
from hedgerow_server.features.clock import Clock
from hedgerow_server.features.freshness import Known
from hedgerow_server.features.memory import Fault, MemoryCache, MemoryStore
from hedgerow_server.features.sources import Row

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

TTL, STALE_TTL = 10.0, 60.0
EPOCH = 1_700_000_000.0


def now() -> float:
    return asyncio.get_running_loop().time()


class World:
    """A store and a cache, and the servers that share them."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.cache = MemoryCache(now)

    def server(
        self,
        *,
        store: bool = True,
        cache: bool = True,
        source: MemoryStore | None = None,
        clock: Clock | None = None,
        **changed: float,
    ) -> Server:
        """A server, with or without either of the two, or with its own way to the store and its own clock."""
        return Server(
            feature_reads.view(ttl=TTL, stale_ttl=STALE_TTL),
            store=(source or self.store) if store else None,
            cache=self.cache if cache else None,
            clock=clock or Clock(now, lambda: EPOCH + now()),
            **changed,
        )

    def write(self, tail: str, value: float) -> None:
        """The store's owner writes."""
        event_us = round((EPOCH + now()) * 1e6)
        self.store.rows["plane_profile@1", tail.encode()] = Row(feature_reads.row(value), event_us)

    def put(self, server: Server, tail: str, value: float, age: float) -> None:
        """Some server writes to the cache what the store said so long ago."""
        confirmed_us = round((EPOCH + now() - age) * 1e6)
        packed = server.view.cached.pack(confirmed_us, confirmed_us, feature_reads.row(value))
        self.cache.values[server.view.prefix + tail.encode()] = packed, now() + STALE_TTL


def said(request: Request) -> tuple[float, str | None]:
    assert request.values is not None
    return float(request.values[0, 0]), request.freshness


@pytest.mark.parametrize("fault", [Fault.DOWN, Fault.HANGS, None])
async def test_an_absence_is_remembered_without_a_cache(fault):
    """Else every request for an unknown id would be a query while the cache is down."""
    world = World()
    world.cache.fault = fault or Fault.NONE
    server = world.server(cache=fault is not None)
    assert said(await server.ask("N1")) == (DEFAULT, "default")
    await asyncio.sleep(0.2)
    assert said(await server.ask("N1")) == (DEFAULT, "default")
    await asyncio.sleep(0.2)
    await server.close()
    assert world.store.calls == 1


async def test_a_row_gone_from_the_store_is_not_served_when_the_store_then_fails():
    """The absence is newer than the row that was held before."""
    world = World()
    server = world.server(cache=False)
    world.write("N1", 7.0)
    assert said(await server.ask("N1")) == (7.0, "fresh")
    world.store.rows.clear()
    await asyncio.sleep(TTL + 1)
    assert said(await server.ask("N1")) == (DEFAULT, "default")
    world.store.fault = Fault.DOWN
    await asyncio.sleep(TTL + 1)
    assert said(await server.ask("N1")) == (DEFAULT, "default")
    await server.close()


async def test_what_is_held_wins_over_an_older_value_in_the_cache_and_replaces_it():
    """As when a write to the cache is lost, and another server's earlier one is found there."""
    world = World()
    server = world.server()
    world.write("N1", 8.0)
    assert said(await server.ask("N1")) == (8.0, "fresh")
    await asyncio.sleep(0.5)
    world.put(server, "N1", 7.0, age=5.0)
    assert said(await server.ask("N1")) == (8.0, "fresh")
    await asyncio.sleep(0.1)
    assert said(await world.server(store=False).ask("N1")) == (8.0, "fresh")
    assert world.store.calls == 1
    await server.close()


async def test_a_newer_value_in_the_cache_wins_over_what_is_held():
    world = World()
    server = world.server()
    world.write("N1", 7.0)
    await server.ask("N1")
    await asyncio.sleep(5)
    world.put(server, "N1", 8.0, age=0.0)
    assert said(await server.ask("N1")) == (8.0, "fresh")
    await server.close()


@pytest.mark.parametrize("cache", [True, False])
async def test_past_its_budget_a_request_gets_the_stale_value_that_is_known(cache):
    world = World()
    server = world.server(cache=cache, budget_ms=50)
    world.write("N1", 7.0)
    await server.ask("N1")
    await asyncio.sleep(TTL + 1)
    world.store.fault = Fault.HANGS
    began = now()
    assert said(await server.ask("N1")) == (7.0, "stale")
    assert now() - began == pytest.approx(0.05, abs=0.002)
    await server.close()


async def test_past_its_budget_a_request_gets_the_stale_value_that_the_cache_had():
    """It is held by this process only since this very read."""
    world = World()
    server = world.server(budget_ms=50)
    world.put(server, "N1", 7.0, age=TTL + 1)
    world.store.fault = Fault.HANGS
    assert said(await server.ask("N1")) == (7.0, "stale")
    await server.close()


async def test_a_value_written_late_keeps_the_age_it_has():
    """The cache was emptied; a server that holds a value puts it there again, with its own date."""
    world = World()
    one = world.server()
    world.write("N1", 7.0)
    await one.ask("N1")
    await asyncio.sleep(8)
    world.cache.values.clear()
    assert said(await one.ask("N1")) == (7.0, "fresh")
    await asyncio.sleep(4)
    other = world.server(store=False)
    assert said(await other.ask("N1")) == (7.0, "stale")
    await asyncio.sleep(STALE_TTL - 12 + 0.1)
    assert said(await world.server(store=False).ask("N1")) == (DEFAULT, "default")
    assert said(await other.ask("N1")) == (DEFAULT, "default")
    await one.close()


async def test_a_value_that_waited_for_the_cache_keeps_the_age_it_has():
    """What the store takes to answer counts as well: a value may be as old as the question."""
    world = World()
    server = world.server(store_timeout_ms=5000)
    world.store.delay = 4.0
    world.write("N1", 7.0)
    await server.ask("N1")  # past its budget; the answer comes for the cache
    await asyncio.sleep(5)
    assert world.cache.values
    world.store.fault = Fault.DOWN
    await asyncio.sleep(TTL - 5.5 + 1)
    assert said(await world.server(store=False).ask("N1")) == (7.0, "stale")
    await server.close()


@pytest.mark.parametrize("row", [True, False])
async def test_the_cache_is_told_to_forget_a_value_when_it_may_not_be_served(row):
    """Counted from when the store was asked; an absence only ever saves a question."""
    world = World()
    server = world.server(store_timeout_ms=5000)
    world.store.delay = 4.0
    if row:
        world.write("N1", 7.0)
    asked = now()
    await server.ask("N1")
    await asyncio.sleep(5)
    ((_, until),) = world.cache.values.values()
    assert until - asked == pytest.approx(STALE_TTL if row else TTL, abs=0.01)
    await server.close()


@pytest.mark.parametrize("ahead", [-3600.0, -30.0, -0.5, 0.5, 30.0, 3600.0])
@pytest.mark.parametrize("wrong", ["the writer", "the reader"])
async def test_a_server_whose_clock_is_wrong_does_not_make_values_look_young(ahead, wrong):
    """Not even those that nobody reads until the other clocks have caught up with their date."""
    world = World()
    skewed = MemoryStore()
    skewed.ahead, skewed.rows = ahead, world.store.rows
    clock = Clock(now, lambda: EPOCH + now() + ahead)
    crooked = world.server(source=skewed, clock=clock)
    straight = world.server()
    writer, reader = (crooked, straight) if wrong == "the writer" else (straight, crooked)
    world.write("N1", 7.0)
    assert said(await writer.ask("N1")) == (7.0, "fresh")
    await asyncio.sleep(5)
    assert said(await reader.ask("N1")) == (7.0, "fresh")
    world.store.fault = skewed.fault = Fault.DOWN
    await asyncio.sleep(TTL - 5 + 0.1)
    assert said(await reader.ask("N1")) == (7.0, "stale")
    await asyncio.sleep(31 - TTL)
    assert said(await reader.ask("N1")) == (7.0, "stale")
    await asyncio.sleep(STALE_TTL - 31)
    assert said(await reader.ask("N1")) == (DEFAULT, "default")
    assert reader.view.counts.corrupt == 0
    await writer.close()
    await reader.close()


@pytest.mark.parametrize(
    ("store", "expected"), [(True, (8.0, "fresh")), (False, (7.0, "fresh"))], ids=["store", "no store"]
)
async def test_a_cache_slower_than_its_timeout(store, expected):
    """The store is asked in its place; without one, the cache may take what there is of the budget."""
    world = World()
    server = world.server(store=store, budget_ms=50, cache_timeout_ms=20)
    world.put(server, "N1", 7.0, age=1)
    world.write("N1", 8.0)
    world.cache.delay = 0.04
    assert said(await server.ask("N1")) == expected
    world.cache.delay = 0.06
    await asyncio.sleep(1)
    assert said(await server.ask("N2")) == (DEFAULT, "default")
    await server.close()


async def test_a_value_that_cannot_be_packed_does_not_close_the_way_to_the_cache(caplog):
    """Not even as the one probe of a half-open breaker, which nothing else would end."""
    world = World()
    server = world.server()
    writer, breaker = server.joining.writer, server.joining.breakers["feature_cache"]
    world.cache.fault = Fault.DOWN
    for number in range(3):
        await server.ask(f"N{number}")
    assert breaker.state is State.OPEN
    world.cache.fault = Fault.NONE
    await asyncio.sleep(1)
    writer.write(server.view, [(b"k", Known(feature_reads.row(1.0), float("inf"), now(), now()))])
    await asyncio.sleep(1)
    assert "could not be written" in caplog.text
    world.write("N1", 7.0)
    for _ in range(5):
        await asyncio.sleep(TTL)
        await server.ask("N1")
    assert breaker.state is State.CLOSED
    assert world.cache.values
    await server.close()
