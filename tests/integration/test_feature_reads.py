"""The reader on a real PostgreSQL and Valkey: one query for many, cancelled reads, outages, broken values."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator

import asyncpg
import feature_reads
import pytest
import redis
from feature_reads import DEFAULT, Server
from feature_store import Postgres, Valkey
from hedgerow_protos import feature_schema
from hedgerow_protos.breaker import State
from hedgerow_protos.feature_view import fingerprint
from hedgerow_protos.hedgerow_control_pb2 import FeatureView
from hedgerow_server.features.cache import RedisCache
from hedgerow_server.features.clock import Clock
from hedgerow_server.features.sources import SourceError, ViewRefused
from hedgerow_server.features.store import PostgresStore
from hedgerow_server.features.view import View

VIEW = feature_reads.view(ttl=60, stale_ttl=3600)
ROWS = 100
#: Budgets that only a hang exceeds.
PATIENT = {"budget_ms": 20_000, "cache_timeout_ms": 10_000, "store_timeout_ms": 20_000}
HANG_SECONDS = 40
#: CANCELLED_READS=10000 for a thorough run.
CANCELLED_READS = int(os.environ.get("CANCELLED_READS", "800"))


async def fill(dsn: str, view: FeatureView = VIEW, *, marker: int | None = None) -> None:
    """Entities N0 to N99, whose field is their number."""
    connection = await asyncpg.connect(dsn)
    try:
        await feature_schema.migrate(connection)
        await connection.execute(
            "INSERT INTO feature_views VALUES ($1, $2, '[]', '[]', 1, 1, 0, $3)",
            view.name,
            view.version,
            fingerprint(view) if marker is None else marker,
        )
        await connection.executemany(
            "INSERT INTO feature_values VALUES ($1, $2, $3, $4, now())",
            [
                (view.name, view.version, b"N%d" % number, feature_reads.row(number, len(view.fields)))
                for number in range(ROWS)
            ],
        )
    finally:
        await connection.close()


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    await fill(database)
    store = PostgresStore(database, connections=4, statement_timeout=20)
    yield store
    await store.close()


@pytest.fixture
async def cache(cache_url: str) -> AsyncIterator[RedisCache]:
    cache = RedisCache(cache_url, connections=4)
    yield cache
    await cache.close()


async def eventually(holds, what: str) -> None:
    """Waits for something that takes a turn or two."""
    until = time.monotonic() + HANG_SECONDS
    while not holds():
        assert time.monotonic() < until, what
        await asyncio.sleep(0.01)


async def test_ten_thousand_reads_of_one_missing_key_make_one_query(store, cache, monkeypatch):
    """However they arrive: in one turn, in many, and while the first is under way."""
    asked: list[list[bytes]] = []
    read = store.read

    async def counted(view, entities):
        asked.append(list(entities))
        return await read(view, entities)

    monkeypatch.setattr(store, "read", counted)
    server = Server(VIEW, store=store, cache=cache, **PATIENT)
    requests = []
    for _ in range(100):
        requests += server.submit(*[["N404"]] * 100)
        await asyncio.sleep(0)
    await asyncio.gather(*(request.done.wait() for request in requests))
    assert asked == [[b"N404"]]
    assert {request.freshness for request in requests} == {"default"}
    assert len(requests) == 10_000
    await server.close()


async def test_one_query_for_all_entities_of_a_turn(store, cache, database):
    server = Server(VIEW, store=store, cache=cache, **PATIENT)
    await server.ask("N404")  # makes the connection, asks for the view's fingerprint
    calls = server.joining.counts()
    before = calls["feature_store"].ok, calls["feature_cache"].ok
    requests = server.submit(*[[f"N{number}", f"N{number + 1}"] for number in range(50)])
    await asyncio.gather(*(request.done.wait() for request in requests))
    for number, request in enumerate(requests):
        assert request.values.ravel().tolist() == [number, number + 1]
    assert (calls["feature_store"].ok, calls["feature_cache"].ok) == (before[0] + 1, before[1] + 1)
    await server.close()


async def test_a_second_server_finds_in_the_cache_what_the_first_has_asked(store, cache):
    first = Server(VIEW, store=store, cache=cache, **PATIENT)
    await first.ask("N1", "N404")
    await eventually(lambda: first.joining.writer.written == 2, "nothing was written to the cache")
    second = Server(VIEW, store=None, cache=cache, **PATIENT)
    known = await second.ask("N1")
    assert (known.freshness, known.values.tolist()) == ("fresh", [[1]])
    assert (await second.ask("N404")).freshness == "default"
    await first.close()


@pytest.mark.parametrize("junk", [b"", b"not ours", b"HF\x01\x01" + bytes(36), bytes(36)])
async def test_a_foreign_cache_value_is_a_miss_counted_and_written_anew(store, cache, cache_url, junk):
    server = Server(VIEW, store=store, cache=cache, **PATIENT)
    with redis.Redis.from_url(cache_url) as client:
        key = server.view.prefix + b"N7"
        client.set(key, junk)
        reply = await server.ask("N7")
        assert (reply.freshness, reply.values.tolist()) == ("fresh", [[7]])
        assert server.view.counts.corrupt == 1
        await eventually(lambda: server.joining.writer.written == 1, "nothing was written to the cache")
        assert server.view.cached.unpack(client.get(key)).row == feature_reads.row(7)
        assert 3500 * 1000 < client.pttl(key) <= 3600 * 1000
    await server.close()


async def test_a_value_from_the_future_is_a_miss(store, cache, cache_url):
    """Its age is anybody's guess: a server whose clock is an hour ahead wrote it."""
    ahead = Server(VIEW, store=store, cache=cache, clock=Clock(wall=lambda: time.time() + 3600), **PATIENT)
    await ahead.ask("N7")
    await eventually(lambda: ahead.joining.writer.written == 1, "nothing was written to the cache")
    server = Server(VIEW, store=store, cache=cache, **PATIENT)
    assert (await server.ask("N7")).freshness == "fresh"
    assert server.view.counts.corrupt == 1
    assert server.view.counts.stored == 1
    await server.close()


async def test_cancelled_reads_never_give_their_answer_to_another(store, cache, cache_url, database):
    """Reads cut off at a random await, on both; every other read gets its own key's value."""
    view = View(VIEW)
    rng = random.Random(7)
    with redis.Redis.from_url(cache_url) as client:
        for number in range(ROWS):
            client.set(b"k%d" % number, b"v%d" % number)
    ends: Counter[str] = Counter()

    async def read(number: int) -> None:
        if rng.random() < 0.5:
            assert list(await cache.read([b"k%d" % number])) == [b"v%d" % number]
        else:
            rows = await store.read(view, [b"N%d" % number])
            assert rows[b"N%d" % number].values == feature_reads.row(number)

    async def cut() -> None:
        """A read that is cancelled after some turns of the loop, or, some of them, never."""
        task = asyncio.ensure_future(read(rng.randrange(ROWS)))
        # A new connection takes some dozen turns, a question on a known one a few.
        for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 5, 6, 8, 12, 30))):
            await asyncio.sleep(0)
        if rng.random() < 0.9:
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            ends["cancelled"] += 1
        except SourceError:
            ends["failed"] += 1  # allowed, as an answer of somebody else's is not
        else:
            ends["answered"] += 1

    for _ in range(CANCELLED_READS // 4):
        await asyncio.gather(*(cut() for _ in range(4)))
    assert ends["cancelled"] > CANCELLED_READS / 3, ends
    assert ends["answered"] > CANCELLED_READS / 20, ends
    assert ends["failed"] < CANCELLED_READS / 100, ends
    for number in range(ROWS):
        await read(number)
    pool = cache._client.connection_pool
    assert not pool._in_use_connections
    assert store._pool.get_size() == store._pool.get_idle_size() <= 4
    with redis.Redis.from_url(cache_url) as client:
        await eventually(
            lambda: sum(one["name"] == "hedgerow-server" for one in client.client_list()) <= 4,
            "connections to Valkey are left over",
        )
    watcher = await asyncpg.connect(database)
    held = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1"
    )
    until = time.monotonic() + HANG_SECONDS
    while await watcher.fetchval(held, "hedgerow-server") > 4:
        assert time.monotonic() < until, "connections to PostgreSQL are left over"
        await asyncio.sleep(0.05)
    await watcher.close()


async def test_callers_that_give_up_cancel_nothing(store, cache):
    """Nine of ten leave while the answer is on its way; the tenth gets it, and no connection is lost."""
    server = Server(VIEW, store=store, cache=cache, **PATIENT)
    await server.ask("N0")
    for turn in range(50):
        requests = server.submit(*[[f"N{turn}", "N99"]] * 10)
        for request in requests[:9]:
            request.ended = True
        await requests[9].done.wait()
        assert requests[9].values.ravel().tolist() == [turn, 99]
        assert all(request.answered is None for request in requests[:9])
    assert server.joining.counts()["feature_store"].failed == 0
    assert server.joining.counts()["feature_cache"].failed == 0
    await server.close()


async def test_a_view_that_the_store_does_not_have_is_refused_alone(store):
    other = View(feature_reads.view("unknown_view"))
    with pytest.raises(ViewRefused, match=r"does not have unknown_view@1; run `hedgerow features apply`"):
        await store.read(other, [b"N1"])
    assert len(await store.read(View(VIEW), [b"N1"])) == 1


async def test_rows_of_another_definition_are_not_read(database):
    await fill(database, marker=1)
    store = PostgresStore(database, connections=1, statement_timeout=20)
    with pytest.raises(ViewRefused, match="a changed view needs a new version"):
        await store.read(View(VIEW), [b"N1"])
    await store.close()


async def test_the_server_makes_the_tables(database):
    store = PostgresStore(database, connections=1, statement_timeout=20)
    with pytest.raises(ViewRefused):
        await store.read(View(VIEW), [b"N1"])
    await store.close()
    await fill(database)


async def test_goes_on_through_an_outage_of_the_store_and_comes_back(own_postgres: Postgres, valkey: Valkey):
    dsn = own_postgres.new_database()
    view = feature_reads.view(ttl=0.3, stale_ttl=3600)
    await fill(dsn, view)
    valkey.empty()
    cache = RedisCache(valkey.url, connections=4)
    store = PostgresStore(dsn, connections=4, statement_timeout=5)
    server = Server(
        view, store=store, cache=cache, cache_timeout_ms=5000, store_timeout_ms=5000, budget_ms=5000
    )
    assert (await server.ask("N1")).freshness == "fresh"
    await asyncio.to_thread(own_postgres.kill)
    await asyncio.sleep(0.35)
    for _ in range(20):
        reply = await server.ask("N1")
        assert (reply.freshness, reply.values.tolist()) == ("stale", [[1]])
        reply = await server.ask("N2")
        assert (reply.freshness, reply.values.tolist()) == ("default", [[DEFAULT]])
    assert server.joining.breakers["feature_store"].state is not State.CLOSED
    await asyncio.to_thread(own_postgres.start)
    until = time.monotonic() + HANG_SECONDS
    while (await server.ask("N1", "N2")).freshness != "fresh":
        assert time.monotonic() < until, "the store is back and nobody notices"
        await asyncio.sleep(0.05)
    await server.close()


async def test_goes_on_without_the_cache(database, own_valkey: Valkey):
    await fill(database)
    store = PostgresStore(database, connections=4, statement_timeout=20)
    cache = RedisCache(own_valkey.url, connections=4)
    server = Server(VIEW, store=store, cache=cache, **PATIENT)
    own_valkey.stop()
    for number in range(20):
        reply = await server.ask(f"N{number}")
        assert (reply.freshness, reply.values.tolist()) == ("fresh", [[number]])
    assert server.joining.breakers["feature_cache"].state is not State.CLOSED
    own_valkey.start()
    with redis.Redis.from_url(own_valkey.url) as client:
        until = time.monotonic() + HANG_SECONDS
        for number in range(20, 10_000):
            if client.dbsize():
                break
            await server.ask(f"N{number}")
            await asyncio.sleep(0.05)
            assert time.monotonic() < until, "the cache is back and nobody notices"
    await server.close()


async def test_a_dead_address_is_a_source_error_not_a_defect(tmp_path):
    store = PostgresStore(f"postgresql://nobody@/none?host={tmp_path}", connections=1, statement_timeout=1)
    with pytest.raises(SourceError):
        await store.read(View(VIEW), [b"N1"])
    cache = RedisCache(f"unix://{tmp_path}/none.sock", connections=2)
    with pytest.raises(SourceError):
        await cache.read([b"k"])
    with pytest.raises(SourceError):
        await cache.write([(b"k", b"v", 10)])
    await cache.close()
    await store.close()


async def test_an_answer_that_asyncpg_does_not_expect_is_a_source_error_not_a_defect(store, monkeypatch):
    """Seen on connections that died; the next read takes another."""

    async def fetch(*_: object) -> None:
        raise asyncpg.InternalClientError("got result for unknown protocol state 3")

    first = store._pool
    with monkeypatch.context() as patched:
        patched.setattr(asyncpg.Connection, "fetch", fetch)
        with pytest.raises(SourceError, match="unknown protocol state"):
            await store.read(View(VIEW), [b"N1"])
    assert first is None
    assert store._pool.get_size() == 0
    assert len(await store.read(View(VIEW), [b"N1"])) == 1


async def test_a_store_that_hangs_while_it_makes_its_tables_is_not_waited_for(own_postgres: Postgres):
    """A transaction that is cancelled waits for its rollback; a lane that did would be blocked for ever."""
    dsn = own_postgres.new_database()
    store = PostgresStore(dsn, connections=1, statement_timeout=60)
    other = await asyncpg.connect(dsn)
    await other.execute("SELECT pg_advisory_lock($1)", feature_schema.LOCK)
    read = asyncio.ensure_future(store.read(View(VIEW), [b"N1"]))
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    until = time.monotonic() + HANG_SECONDS
    while not await other.fetchval(waits):
        assert time.monotonic() < until, "nobody waits for the lock"
        await asyncio.sleep(0.01)
    own_postgres.pause()
    try:
        read.cancel()
        ended, _ = await asyncio.wait([read], timeout=HANG_SECONDS)
        assert ended, "the read waits for a store that hangs"
        assert read.cancelled()
    finally:
        own_postgres.resume()
    await other.close()
    with pytest.raises(ViewRefused):
        await store.read(View(VIEW), [b"N1"])
    await store.close()


@pytest.mark.parametrize("ahead", [-30.0, 0.0, 30.0])
async def test_ages_are_told_by_the_store_s_clock(database, ahead):
    """However wrong the server's own is; servers share the store."""
    await fill(database)
    clock = Clock(wall=lambda: time.time() + ahead)
    store = PostgresStore(database, connections=1, statement_timeout=20, clock=clock)
    await store.read(View(VIEW), [b"N1"])
    await store.close()
    assert store.ahead == pytest.approx(ahead, abs=0.6)  # an answer that took longer than that is not used


async def test_a_cache_that_closed_the_connection_meanwhile_is_asked_on_another(cache, cache_url):
    """As after its restart: no read fails for that."""
    with redis.Redis.from_url(cache_url, protocol=2) as direct:
        direct.set("a", "1")
        assert await cache.read([b"a", b"b"]) == [b"1", None]
        direct.client_kill_filter(_type="normal", skipme=True)
    await asyncio.sleep(0.1)
    assert await cache.read([b"b", b"a"]) == [None, b"1"]


async def test_the_cache_s_refusal_is_told_and_costs_no_later_read(cache, cache_url):
    with pytest.raises(SourceError, match="wrong number of arguments"):
        await cache.read([])
    assert await cache.read([b"nothing"]) == [None]


async def test_reads_of_the_cache_are_bounded(cache):
    reads = [asyncio.ensure_future(cache.read([b"a"])) for _ in range(20)]
    results = await asyncio.gather(*reads, return_exceptions=True)
    assert [isinstance(result, SourceError) for result in results].count(False) == 4
    assert await cache.read([b"a"]) == [None]
