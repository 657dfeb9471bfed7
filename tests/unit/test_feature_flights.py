"""Keys asked for together by requests that want some of them: who waits for what, in virtual time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import feature_reads
import pytest
from feature_reads import DEFAULT, Request, Server
from hedgerow_server.features import lane, reader
from hedgerow_server.features.clock import Clock
from hedgerow_server.features.flight import Wait
from hedgerow_server.features.memory import Fault, MemoryCache, MemoryStore
from hedgerow_server.features.sources import Row
from hedgerow_server.features.view import View

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

TTL, STALE_TTL = 10.0, 60.0
EPOCH = 1_700_000_000.0


def now() -> float:
    return asyncio.get_running_loop().time()


class Store(MemoryStore):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[bytes]] = []

    async def read(self, view: View, entities: Sequence[bytes]):
        self.asked.append(list(entities))
        return await super().read(view, entities)


class Cache(MemoryCache):
    """The same."""

    def __init__(self) -> None:
        super().__init__(now)
        self.asked: list[list[bytes]] = []

    async def read(self, keys: Sequence[bytes]):
        self.asked.append([key.rsplit(b":", 1)[1] for key in keys])
        return await super().read(keys)


class World:
    """A store with rows N0, N1, …, whose value is their number, an empty cache, and a server."""

    def __init__(self, rows: int = 10, *, cache: bool = True, **changed: float) -> None:
        self.store, self.cache = Store(), Cache()
        for number in range(rows):
            self.store.rows["plane_profile@1", b"N%d" % number] = Row(feature_reads.row(number), 0)
        self.server = Server(
            feature_reads.view(ttl=TTL, stale_ttl=STALE_TTL),
            store=self.store,
            cache=self.cache if cache else None,
            clock=Clock(now, lambda: EPOCH + now()),
            **changed,
        )

    def put(self, *tails: str, value: float = 100.0, age: float = 0.0) -> None:
        """Values in the cache, another than the store's."""
        confirmed_us = round((EPOCH + now() - age) * 1e6)
        packed = self.server.view.cached.pack(confirmed_us, confirmed_us, feature_reads.row(value))
        for tail in tails:
            self.cache.values[self.server.view.prefix + tail.encode()] = packed, now() + STALE_TTL


def values(request: Request) -> list[float]:
    assert request.values is not None
    return request.values.ravel().tolist()


async def done(*requests: Request) -> None:
    for request in requests:
        await request.done.wait()


async def test_what_the_cache_has_is_not_held_up_by_what_it_lacks_for_another():
    """They share a question to the cache; only who wants the missing key waits for the store."""
    world = World(budget_ms=50)
    world.put("N1", "N2")
    world.store.fault = Fault.HANGS
    began = now()
    has, lacks, both = world.server.submit(["N1", "N2"], ["N3"], ["N2", "N3"])
    await done(has)
    assert now() == began
    await done(lacks, both)
    assert now() - began == pytest.approx(0.05, abs=0.002)
    assert (values(has), values(lacks), values(both)) == ([100, 100], [DEFAULT], [100, DEFAULT])
    assert (has.freshness, lacks.freshness, both.freshness) == ("fresh", "default", "default")
    assert len(world.cache.asked) == 1
    await world.server.close()


async def test_a_request_waits_for_the_store_s_part_of_its_keys_and_gets_all():
    world = World()
    world.put("N1", "N3")
    request = await world.server.ask("N0", "N1", "N2", "N3", "N1", "N0")
    assert values(request) == [0, 100, 2, 100, 100, 0]
    assert request.freshness == "fresh"
    assert world.store.asked == [[b"N0", b"N2"]]
    await world.server.close()


async def test_no_key_is_asked_for_twice_however_requests_overlap():
    world = World(store_timeout_ms=5000, budget_ms=5000)
    world.cache.delay = world.store.delay = 0.01
    world.put("N4")
    requests = world.server.submit(["N1", "N2"], ["N2", "N3", "N2"], ["N3", "N1", "N4"])
    await asyncio.sleep(0.005)  # while the cache is asked
    requests += world.server.submit(["N3", "N5"])
    await asyncio.sleep(0.010)  # while the store is asked
    requests += world.server.submit(["N5", "N1", "N6"])
    await done(*requests)
    assert [values(request) for request in requests] == [
        [1, 2],
        [2, 3, 2],
        [3, 1, 100],
        [3, 5],
        [5, 1, 6],
    ]
    for asked in (world.cache.asked, world.store.asked):
        flat = [entity for entities in asked for entity in entities]
        assert len(flat) == len(set(flat)), asked
    await world.server.close()


async def test_a_request_may_want_keys_of_one_view_twice(monkeypatch):
    """As the weather at origin and destination: keys of its own, and of another's flight."""
    world = World(store_timeout_ms=5000, budget_ms=5000)
    (other,) = world.server.submit(["N1", "N2"])
    await asyncio.sleep(0)
    source, prefix = world.server.joining.joiner.reader, world.server.view.prefix
    wait, ready = Wait(), asyncio.Event()
    monkeypatch.setattr(source, "_ready", lambda waits: ready.set() if wait in waits else None)
    for tails in (["N1", "N3"], ["N2", "N3", "N4"]):
        source.want(wait, world.server.view, [prefix + tail.encode() for tail in tails])
    assert not source.seal(wait)
    source.flush()
    await ready.wait()
    found = {key[len(prefix) :]: known and known.row for key, known in wait.values.items()}
    assert found == {b"N%d" % number: feature_reads.row(number) for number in (1, 2, 3, 4)}
    assert world.cache.asked == [[b"N1", b"N2"], [b"N3", b"N4"]]
    other.ended = True
    await world.server.close()


async def test_more_keys_than_go_into_one_question_are_asked_in_several():
    count = 2 * reader.FLIGHT_KEYS + 7
    world = World(count, max_entities=count)
    request = await world.server.ask(*(f"N{number}" for number in range(count)))
    assert values(request) == list(range(count))
    assert [len(keys) for keys in world.cache.asked] == [reader.FLIGHT_KEYS, reader.FLIGHT_KEYS, 7]
    assert sum(len(entities) for entities in world.store.asked) == count
    await world.server.close()


async def test_a_question_takes_requests_as_long_as_their_keys_fit():
    third = reader.FLIGHT_KEYS // 3 + 1
    world = World(3 * third)
    tails = [f"N{number}" for number in range(3 * third)]
    requests = world.server.submit(tails[:third], tails[third : 2 * third], tails[2 * third :])
    await done(*requests)
    assert [len(keys) for keys in world.cache.asked] == [2 * third, third]
    await world.server.close()


async def test_values_that_grow_old_are_asked_for_ahead_together_and_nobody_waits(monkeypatch):
    monkeypatch.setattr("hedgerow_server.features.view.random", lambda: 0.5)
    world = World()
    tails = [f"N{number}" for number in range(10)]
    await world.server.ask(*tails)
    await asyncio.sleep(0.96 * TTL)
    world.store.delay = 0.03
    world.store.asked.clear()
    began = now()
    request = await world.server.ask(*tails)
    assert now() == began
    assert request.freshness == "fresh"
    await asyncio.sleep(0.05)
    assert sorted(world.store.asked[0]) == sorted(tail.encode() for tail in tails)
    assert len(world.store.asked) == 1
    await asyncio.sleep(1)
    assert (await world.server.ask(*tails)).freshness == "fresh"
    await world.server.close()


async def test_a_request_that_leaves_with_what_is_known_leaves_the_others_waiting():
    """Its time is over between the cache's answer and the store's."""
    world = World(budget_ms=1000, store_timeout_ms=5000)
    world.put("N1", age=TTL + 1)
    world.store.delay = 0.1
    (hurried,) = world.server.submit(["N1", "N2"], timeout=0.1)
    (patient,) = world.server.submit(["N2", "N1"])
    await done(hurried)
    assert (values(hurried), hurried.freshness) == ([100, DEFAULT], "default")
    await done(patient)
    assert (values(patient), patient.freshness) == ([2, 1], "fresh")
    await world.server.close()


async def test_too_many_waiting_keys_are_answered_without_asking(monkeypatch):
    """And the server comes back from it; a request in line keeps its place."""
    monkeypatch.setattr(lane, "MAX_WAITING", 5)
    world = World(cache=False, store_connections=1, store_timeout_ms=5000, budget_ms=5000)
    world.store.delay = 0.1
    (first,) = world.server.submit(["N0"])
    (in_line,) = world.server.submit(["N1", "N2", "N3"])
    (refused,) = world.server.submit(["N4", "N5", "N6", "N1"])
    assert world.server.joining.counts()["feature_store"].refused_keys == 3
    await done(first, in_line, refused)
    assert (values(first), values(in_line)) == ([0], [1, 2, 3])
    assert (values(refused), refused.freshness) == ([DEFAULT, DEFAULT, DEFAULT, 1], "default")
    assert values(await world.server.ask("N4", "N5")) == [4, 5]
    await world.server.close()


async def test_an_answer_that_makes_no_sense_is_none(caplog):
    """As when a proxy answers for the cache: too few values. Nobody waits for ever, no key is lost."""
    world = World()

    async def read(keys):
        del keys
        return [b"one"]

    world.cache.read = read
    assert values(await world.server.ask("N1", "N2")) == [1, 2]
    assert "reading plane_profile@1 from the feature_cache failed" in caplog.text
    assert values(await world.server.ask("N1", "N2", "N3")) == [1, 2, 3]
    await world.server.close()


@contextmanager
def garbage() -> Iterator[list[object]]:
    """What of the server's objects only the garbage collector finds of all that was left inside."""
    gc.collect()
    gc.disable()
    found: list[object] = []
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += [one for one in gc.garbage if type(one).__module__.startswith("hedgerow_server")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def ask_in_many_ways(world: World, fault: Fault) -> None:
    """Hits, misses, requests that share keys, and one whose time is over early; values of three ages."""
    world.store.fault = fault
    for age in (0.0, TTL, 3 * TTL):
        world.put("N1", "N2", age=age)
        await done(
            *world.server.submit(["N1", "N3"], ["N2", "N1"], ["N4"]),
            *world.server.submit(["N4", "N2"], timeout=0.04),
        )
        await asyncio.sleep(3 * TTL)


async def test_requests_leave_nothing_for_the_garbage_collector():
    """One that was in a cycle kept its rows until a collection, and that held the loop up for 10 to 40 ms."""
    world = World(budget_ms=50)
    with garbage() as found:
        await ask_in_many_ways(world, Fault.NONE)
    assert found == []
    await world.server.close()


@pytest.mark.parametrize("fault", [Fault.HANGS, Fault.DOWN])
async def test_calls_that_fail_keep_no_request(fault):
    """Their exceptions and frames are in cycles, which nobody can help; requests are not among them."""
    world = World(budget_ms=50)
    with garbage() as found:
        await ask_in_many_ways(world, fault)
    assert [one for one in found if isinstance(one, Wait)] == []
    await world.server.close()
