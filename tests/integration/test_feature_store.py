"""The feature store on a real PostgreSQL: views, loads whole or not at all, and what is known of entities."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time

import asyncpg
import pytest
from feature_views import PLANES, WEATHER, planes, weather
from hedgerow import features
from hedgerow.cli import main
from hedgerow.errors import (
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    RowsRefused,
    StoreError,
    ViewRefused,
)
from hedgerow.features.store import connect
from hedgerow_protos import feature_schema
from hedgerow_protos.feature_row import CacheCodec
from hedgerow_protos.feature_view import canonical
from redis import Redis

HEADER = "tailnum,seats,year,maker,position,event_time\n"
OLD = 'N1,100,1990,old,"[1, 2]",2020-01-01\nN2,200,1991,old,"[1, 2]",2020-01-01\n'


@pytest.fixture
def store(database, tmp_path):
    """A store with both views."""
    for name, text in (("planes.yaml", PLANES), ("weather.yaml", WEATHER)):
        (tmp_path / name).write_text(text)
    features.apply([tmp_path / "planes.yaml", tmp_path / "weather.yaml"], store=database)
    return database


@pytest.fixture
def load(store, tmp_path):
    """Loads rows of CSV into planes@1."""

    def loaded(rows: str, **options):
        path = tmp_path / "planes.csv"
        path.write_text(HEADER + rows)
        return features.load("planes@1", path, store=store, **options)

    return loaded


def _known(store: str, *ids: str) -> dict[str, tuple[object, ...]]:
    """Freshness, seats and maker of planes, by id."""
    return {
        one.entity[0]: (one.store.freshness, one.store.values["seats"], one.store.values["maker"])
        for one in features.get("planes@1", ids, store=store)
    }


def _sql(dsn: str, query: str, *arguments: object):
    async def run():
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()

    return asyncio.run(run())


async def test_several_starters_make_one_schema(database):
    async def start() -> int:
        connection = await asyncpg.connect(database)
        try:
            return await feature_schema.migrate(connection)
        finally:
            await connection.close()

    ran = await asyncio.gather(*(start() for _ in range(8)))
    assert sorted(ran) == [0] * 7 + [feature_schema.VERSION]
    assert await start() == 0


def test_a_store_of_a_newer_release_is_refused(store):
    _sql(store, "INSERT INTO feature_schema (version) VALUES ($1)", feature_schema.VERSION + 1)
    with pytest.raises(FailedPrecondition, match=r"has version 2, this release knows up to 1; upgrade"):
        features.get("planes@1", ["N1"], store=store)


async def test_views_come_back_as_they_were_applied(store):
    async with connect(store) as opened:
        assert await opened.views() == [canonical(planes()), canonical(weather())]
        assert await opened.view("weather@3") == canonical(weather())


def test_the_same_definition_again_is_fine_and_another_is_refused_whole(store, tmp_path):
    path = tmp_path / "planes.yaml"
    path.write_text(PLANES.replace("150", "150.0").replace("60s", "1m"))
    assert [one.result for one in features.apply([path], store=store)] == ["unchanged"]
    other = tmp_path / "other.yaml"
    other.write_text(WEATHER.replace("version: 3", "version: 4"))
    path.write_text(PLANES.replace("150", "151"))
    with pytest.raises(ViewRefused) as caught:
        features.apply([other, path], store=store)
    assert "field seats: FP32 default 150.0 -> FP32 default 151.0" in caught.value.details
    assert "write version: 2" in caught.value.details
    with pytest.raises(NotFound, match=r"no view weather@4; it has weather@3"):
        features.get("weather@4", ["EWR|5"], store=store)


@pytest.mark.parametrize(
    ("ref", "error", "message"),
    [
        ("planes@2", NotFound, "it has planes@1"),
        ("trains@1", NotFound, "it has planes@1, weather@3"),
        ("planes", InvalidRequest, "expected NAME@VERSION.*it has planes@1"),
    ],
)
def test_an_unknown_view_is_told_with_what_there_is(store, tmp_path, ref, error, message):
    (tmp_path / "a.csv").write_text(HEADER)
    with pytest.raises(error, match=message):
        features.load(ref, tmp_path / "a.csv", store=store)


def test_newer_event_times_win_whatever_the_order(load, store):
    loaded = load("N1,2,,,,2020-01-02\nN1,1,,,,2020-01-01\nN1,3,,,,2020-01-02\n")
    assert (loaded.rows, loaded.written, loaded.kept) == (3, 1, 2)
    assert _known(store, "N1") == {"N1": ("fresh", 3.0, "unknown")}  # of equal times the last row
    assert load("N1,9,,,,2019-12-31\nN2,5,,,,2019-12-31\n").written == 1
    assert _known(store, "N1", "N2") == {"N1": ("fresh", 3.0, "unknown"), "N2": ("fresh", 5.0, "unknown")}
    assert load("N1,4,,new,,2020-01-03\n").defaults == {"year": 1, "position": 1}
    assert _known(store, "N1") == {"N1": ("fresh", 4.0, "new")}


def test_the_same_file_again_changes_nothing(load):
    assert load(OLD).written == 2
    assert load(OLD).written == 0


def test_one_bad_row_is_enough_to_load_nothing_and_all_are_counted(load, store):
    load(OLD)
    rows = "N1,111,,,,2021-01-01\n,1,,,,2021-01-01\nN3,x,,,,2021-01-01\n" + "N4,1,,,,2999-01-01\n" * 40
    with pytest.raises(RowsRefused) as caught:
        load(rows)
    assert caught.value.bad_count == 42
    assert len(caught.value.bad) == 20
    assert caught.value.bad[0] == (3, "tailnum is empty; expected an id")
    assert caught.value.bad[1] == (4, "seats is 'x'; expected FP32")
    assert "lies in the future" in caught.value.bad[2][1]
    assert "nothing was loaded: line 3: tailnum is empty" in caught.value.details
    assert _known(store, "N1", "N4") == {"N1": ("fresh", 100.0, "old"), "N4": ("default", 150.0, "unknown")}


def test_a_file_without_a_column_is_refused_with_what_it_has(store, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("tailnum,seats,when\n")
    with pytest.raises(
        RowsRefused, match=r"no column 'year', 'maker', 'position', 'event_time'.*--event-time"
    ):
        features.load("planes@1", path, store=store)
    path.write_text("tailnum,seats,year,maker,position,seats,event_time\n")
    with pytest.raises(RowsRefused, match="more than one column 'seats'"):
        features.load("planes@1", path, store=store)


async def test_loads_at_once_leave_what_one_after_the_other_would(store, tmp_path):
    """They lock rows in one order, so none is a deadlock's victim."""
    paths = []
    for number in range(4):
        lines = [f"N{plane},{number},,,,2020-01-0{1 + (number + plane) % 4}" for plane in range(500)]
        paths.append(tmp_path / f"{number}.csv")
        paths[-1].write_text(HEADER + "\n".join(reversed(lines) if number % 2 else lines) + "\n")
    await asyncio.gather(*(asyncio.to_thread(features.load, "planes@1", path, store=store) for path in paths))
    async with connect(store) as opened:
        rows = await opened.connection.fetch("SELECT event_time FROM feature_values")
    assert len(rows) == 500
    assert {row["event_time"].day for row in rows} == {4}


def test_composite_ids_with_separators_inside_stay_apart(store, tmp_path):
    path = tmp_path / "weather.csv"
    path.write_text("airport,hour,wind,event_time\nA|1,2,5,2020-01-01\nA,12,6,2020-01-01\n")
    features.load("weather@3", path, store=store)
    found = features.get("weather@3", ["A\\|1|2", "A|12", "A|1"], store=store)
    assert [one.entity for one in found] == [("A|1", 2), ("A", 12), ("A", 1)]
    # Seven days is max_age: what is older counts as missing.
    assert {one.store.freshness for one in found} == {"default"}
    assert [one.store.event_time is None for one in found] == [False, False, True]
    for wrong in ("A", "A|x", "A|1|2", "|1", "A|01"):
        with pytest.raises(InvalidRequest, match="weather@3"):
            features.get("weather@3", [wrong], store=store)


def test_a_warmed_cache_holds_what_the_store_says(load, store, cache_url):
    load("N1,7,,newest,,2022-01-01\n")
    loaded = load(OLD, warm=cache_url)
    assert (loaded.written, loaded.warmed) == (1, 2)
    codec = CacheCodec(planes())
    with Redis.from_url(cache_url) as cache:
        assert 0 < cache.pttl(codec.key(b"N1")) <= 3_600_000
        cached = codec.unpack(cache.get(codec.key(b"N1")))
        cache.set(codec.key(b"N2"), b"foreign")
    assert abs(cached.confirmed_us / 1e6 - time.time()) < 60
    one, two = features.get("planes@1", ["N1", "N2"], store=store, cache_url=cache_url)
    assert one.cache.values == one.store.values
    assert one.cache.values["maker"] == "newest"  # not what the file said
    assert (one.cache.freshness, two.cache) == ("fresh", None)


def test_a_cache_that_is_away_is_told_before_anything_is_loaded(load, store, tmp_path):
    with pytest.raises(StoreError, match="the cache"):
        load(OLD, warm=f"unix://{tmp_path}/none.sock")
    assert _known(store, "N1")["N1"][0] == "default"


@pytest.mark.parametrize(
    ("dsn", "error"),
    [
        ("postgresql://user:secret@127.0.0.1:1/x", StoreError),
        ("postgresql://user:secret@/x?host=/nonexistent", StoreError),
        ("mysql://user:secret@127.0.0.1/x", InvalidRequest),
        ("nonsense", InvalidRequest),
    ],
)
def test_a_store_that_is_away_is_told_without_its_password(dsn, error):
    with pytest.raises(error) as caught:
        features.get("planes@1", ["N1"], store=dsn)
    assert "secret" not in caught.value.details


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_an_interrupted_load_leaves_the_old_data_whole(load, store, tmp_path, how):
    """Caught in the upsert, with every row copied: somebody else's lock holds it there."""
    await asyncio.to_thread(load, OLD)
    path = tmp_path / "new.csv"
    path.write_text(HEADER + "".join(f"N{number},9,,new,,2021-01-01\n" for number in range(1000)))
    holder = await asyncpg.connect(store)
    try:
        async with holder.transaction():
            await holder.execute("LOCK TABLE feature_values IN SHARE MODE")
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "hedgerow", "features", "load", "planes@1", path, "--store", store),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            while not await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert process.returncode is None, await process.stdout.read()
                await asyncio.sleep(0.01)
            process.send_signal(how)
            said, _ = await process.communicate()
    finally:
        await holder.close()
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert how == signal.SIGKILL or b"interrupted; nothing was loaded" in said
    assert await asyncio.to_thread(_known, store, "N1", "N2", "N3") == {
        "N1": ("fresh", 100.0, "old"),
        "N2": ("fresh", 200.0, "old"),
        "N3": ("default", 150.0, "unknown"),
    }
    # Nothing is left behind that stands in the way of the next load.
    again = await asyncio.to_thread(features.load, "planes@1", path, store=store)
    assert again.written == 1000


def test_the_commands_speak_to_people_and_to_programs(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HEDGEROW_FEATURES__STORE", store)
    monkeypatch.chdir(tmp_path)
    assert main(["features", "apply", "planes.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"view": "planes@1", "result": "unchanged"}]
    (tmp_path / "a.csv").write_text("tailnum,seats,year,maker,position\nN1,1,2,x,\n")
    assert main(["features", "load", "planes@1", "a.csv", "--at", "2020-01-01T00:00:00"]) == 0
    said = capsys.readouterr().out
    assert re.match(r"planes@1: 1 rows in .* 1 entities written, 0 rows told nothing newer", said)
    assert "position: 1 empty cell took the default" in said
    assert main(["features", "get", "planes@1", "N1", "N9"]) == 0
    said = capsys.readouterr().out
    assert "store: fresh; event time 2020-01-01T00:00:00Z" in said
    assert "store: default; nothing known" in said
    (tmp_path / "a.csv").write_text("tailnum,seats,year,maker,position\n,1,2,x,\n")
    assert main(["features", "load", "planes@1", "a.csv", "--at", "now", "--json"]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["kind"], error["bad_count"]) == ("RowsRefused", 1)
    assert error["bad"] == [{"place": 2, "reason": "tailnum is empty; expected an id"}]
    assert main(["features", "get", "planes@9", "N1"]) == 3
    assert main(["features", "get", "planes@1"]) == 2
    assert main(["features", "load", "planes@1", "a.csv", "--at", "soon"]) == 2
    assert main(["features", "apply", "none.yaml"]) == 2
    monkeypatch.setenv("HEDGEROW_FEATURES__STORE", f"postgresql:///x?host={os.devnull}")
    assert main(["features", "get", "planes@1", "N1"]) == 4
