"""Requests that bring ids: a real server, PostgreSQL and Valkey, on both transports."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from pathlib import Path

import asyncpg
import hedgerow
import numpy as np
import pytest
import zoo
from feature_store import Postgres, Valkey
from hedgerow_protos import feature_schema
from hedgerow_protos.feature_entity import EntityCodec
from hedgerow_protos.feature_row import RowLayout
from hedgerow_protos.feature_view import canonical, fingerprint, parse_views
from hedgerow_protos.hedgerow_control_pb2 import FeatureView
from server_process import HANG_SECONDS, Serve, ServerProcess, start_server

VIEWS = """
- name: plane
  version: 1
  entity: [{name: tailnum, datatype: BYTES}]
  fields:
    - {name: seats, datatype: FP32, default: 150}
    - {name: engines, datatype: INT32, default: 2}
    - {name: year, datatype: FP32, default: 2000}
  ttl: 1h
  stale_ttl: 2h
- name: weather
  version: 3
  entity: [{name: airport, datatype: BYTES}, {name: hour, datatype: INT64}]
  fields: [{name: wind, datatype: FP32, default: -1}]
  ttl: 1h
  stale_ttl: 2h
"""
BINDING = """
  inputs:
    - input: x
      columns:
        - view: plane@1
          fields: [seats, year]
        - request: {name: month}
        - view: weather@3
          entity: {airport: origin}
        - view: weather@3
          entity: {airport: dest}
"""


def serving(views: str = VIEWS, binding: str = BINDING) -> str:
    indented = "".join(f"    {line}\n" for line in views.strip().splitlines())
    return f"features:\n  views:\n{indented}{binding}"


async def fill(dsn: str, view: FeatureView, rows: dict[tuple[object, ...], dict[str, object]]) -> None:
    """Applies a view and puts rows into the store."""
    connection = await asyncpg.connect(dsn)
    try:
        await feature_schema.migrate(connection)
        await connection.execute(
            "INSERT INTO feature_views VALUES ($1, $2, '[]', '[]', 1, 1, 0, $3)",
            view.name,
            view.version,
            fingerprint(view),
        )
        entities, layout = EntityCodec(view), RowLayout(view)
        await connection.executemany(
            "INSERT INTO feature_values VALUES ($1, $2, $3, $4, now())",
            [
                (view.name, view.version, entities.encode(ids), layout.pack(values))
                for ids, values in rows.items()
            ],
        )
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> str:
    dsn = postgres.new_database()
    plane, weather = map(canonical, parse_views(VIEWS, source="views"))

    async def fill_both() -> None:
        await fill(dsn, plane, {("N1",): {"seats": 55, "engines": 2, "year": 1999}})
        await fill(
            dsn, weather, {("JFK", 7): {"wind": 12.5}, ("LAX", 7): {"wind": 3}, ("a|b", -1): {"wind": 9}}
        )

    asyncio.run(fill_both())
    return dsn


def bound_model(directory: Path, text: str) -> Path:
    model = zoo.identity(directory / "model.onnx", "FP32", ("batch", 5))
    (directory / "serving.yaml").write_text(text)
    return model


@pytest.fixture(scope="module")
def running(
    server: Serve, transport: str, dsn: str, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> ServerProcess:
    model = bound_model(tmp_path_factory.mktemp("bound"), serving())
    return server(
        {"delay": model},
        transport=transport,
        features__store=dsn,
        features__cache=valkey.url,
        features__budget_ms=5000,
        features__cache_timeout_ms=2000,
        features__store_timeout_ms=5000,
        features__max_entities=50,
    )


@pytest.fixture
def client(running: ServerProcess):
    with hedgerow.Client(running.grpc) as client:
        yield client


def ask(client: hedgerow.Client, **changed: object) -> hedgerow.InferResult:
    inputs = {
        "tailnum": np.array(["N1"], object),
        "month": np.array([6], np.float32),
        "origin": np.array(["JFK"], object),
        "hour": np.array([7], np.int64),
        "dest": np.array(["LAX"], object),
    }
    return client.infer("delay", {**inputs, **changed})


def test_lays_rows_of_views_and_columns_of_the_request_into_one_input(client):
    result = ask(client)
    np.testing.assert_array_equal(result["y"], [[55, 1999, 6, 12.5, 3]])
    assert result.features == "fresh"


def test_what_the_store_does_not_have_is_the_default_and_marked(client):
    result = ask(client, tailnum=np.array(["N404"], object))
    np.testing.assert_array_equal(result["y"], [[150, 2000, 6, 12.5, 3]])
    assert result.features == "default"


def test_many_rows_in_any_order_each_get_their_own(client):
    result = ask(
        client,
        tailnum=np.array(["N404", "N1", "N1"], object).reshape(3, 1),
        month=np.array([[1], [2], [3]], np.float32),
        origin=np.array(["LAX", "a|b", "JFK"], object),
        hour=np.array([7, -1, 8], np.int64),
        dest=np.array(["JFK", "JFK", "JFK"], object),
    )
    np.testing.assert_array_equal(
        result["y"], [[150, 2000, 1, 3, 12.5], [55, 1999, 2, 9, -1], [55, 1999, 3, -1, -1]]
    )


def test_the_input_itself_is_taken_as_before(client):
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    result = client.infer("delay", {"x": x})
    np.testing.assert_array_equal(result["y"], x)
    assert result.features is None


def test_requests_of_both_kinds_at_once_all_get_their_own_answers(running):
    async def ask_all() -> None:
        async with hedgerow.AsyncClient(running.grpc) as client:

            async def joined(month: int) -> None:
                result = await client.infer(
                    "delay",
                    {
                        "tailnum": np.array(["N1"], object),
                        "month": np.array([month], np.float32),
                        "origin": np.array(["JFK"], object),
                        "hour": np.array([7], np.int64),
                        "dest": np.array(["LAX"], object),
                    },
                )
                np.testing.assert_array_equal(result["y"], [[55, 1999, month, 12.5, 3]])

            async def plain(value: int) -> None:
                x = np.full((1, 5), value, np.float32)
                result = await client.infer("delay", {"x": x})
                np.testing.assert_array_equal(result["y"], x)

            await asyncio.gather(*(work(i) for i in range(100) for work in (joined, plain)))

    asyncio.run(ask_all())


def test_metadata_lists_what_callers_send(client):
    inputs = {tensor.name: (tensor.datatype, tensor.shape) for tensor in client.metadata("delay").inputs}
    assert inputs == {
        "tailnum": ("BYTES", (-1, 1)),
        "month": ("FP32", (-1, 1)),
        "origin": ("BYTES", (-1, 1)),
        "hour": ("INT64", (-1, 1)),
        "dest": ("BYTES", (-1, 1)),
    }


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"tailnum": np.array([""], object)}, "tailnum is empty"),
        ({"tailnum": np.array(["N" * 600], object)}, "at most 512"),
        ({"tailnum": np.array([7], np.int64)}, "takes BYTES"),
        ({"hour": np.array(["7"], object)}, "takes INT64"),
        ({"tailnum": np.array(["N1", "N2"], object)}, "rows"),
        ({"tailnum": np.array([], object)}, "no rows"),
        ({"tailnum": np.array([["N1", "N2"]], object)}, "shape"),
        ({"extra": np.array([1], np.float32)}, "not an input of the model 'extra'"),
        ({name: np.array(["A"] * 51, object) for name in ("tailnum", "origin", "dest")}
         | {"month": np.zeros(51, np.float32), "hour": np.zeros(51, np.int64)}, "looks up 50"),
    ],
)  # fmt: skip
def test_ids_that_cannot_be_are_refused_with_a_reason(client, changed, told):
    with pytest.raises(hedgerow.InvalidRequest, match=told):
        ask(client, **changed)


def test_a_missing_id_is_named(client):
    with pytest.raises(hedgerow.InvalidRequest, match="missing 'tailnum'"):
        client.infer("delay", {"month": np.array([6], np.float32)})


def test_log_and_metrics_tell_how_good_the_features_were(client, running):
    ids = {"tailnum": ["N1"], "month": [6], "origin": ["JFK"], "hour": [7], "dest": ["LAX"]}
    client.infer("delay", ids, metadata={"x-request-id": "the-one"})
    until = time.monotonic() + HANG_SECONDS
    while not (lines := [line for line in running.log_lines() if line["request_id"] == "the-one"]):
        assert time.monotonic() < until
        time.sleep(0.02)
    (line,) = lines
    assert line["features"] == "fresh"
    assert line["join_ms"] > 0
    with urllib.request.urlopen(f"http://{running.metrics}/metrics") as reply:
        page = reply.read().decode()
    assert 'hedgerow_feature_reads_total{freshness="fresh",view="plane@1"}' in page
    assert 'hedgerow_breaker_state{dependency="feature_store",worker="0"} 0.0' in page
    assert 'hedgerow_feature_age_seconds_bucket{le="+Inf",view="weather@3"}' in page
    with urllib.request.urlopen(f"http://{running.http}/health/dependencies") as reply:
        assert b'"feature_cache":{"state":"closed"' in reply.read()


def test_a_binding_that_does_not_fit_the_model_is_refused(tmp_path):
    wrong = serving(binding=BINDING.replace("[seats, year]", "[seats, engines]"))
    with pytest.raises(pytest.fail.Exception, match="plane@1 has engines as INT32"):
        start_server(tmp_path, {"delay": bound_model(tmp_path, wrong)}, {})


def test_predict_takes_plain_values(client, running):
    rows = {"tailnum": ["N1", "N404"], "month": [6, 7], "origin": ["JFK", "LAX"], "hour": [7, 7]}
    result = client.predict("delay", {**rows, "dest": ["LAX", "JFK"]})
    np.testing.assert_array_equal(result["y"], [[55, 1999, 6, 12.5, 3], [150, 2000, 7, 3, 12.5]])
    assert result.features == "default"
    one = {"tailnum": "N1", "month": 6, "origin": "JFK", "hour": 7, "dest": "LAX"}
    result = hedgerow.predict("delay", one, server=running.grpc)
    np.testing.assert_array_equal(result["y"], [[55, 1999, 6, 12.5, 3]])
    assert result.features == "fresh"


async def test_predict_on_asyncio(running):
    one = {"tailnum": "N1", "month": np.float32(6), "origin": "JFK", "hour": 7, "dest": "LAX"}
    async with hedgerow.AsyncClient(running.grpc) as client:
        result = await client.predict("delay", one)
    np.testing.assert_array_equal(result["y"], [[55, 1999, 6, 12.5, 3]])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({}, "at least one"),
        ({"tailnum": ["N1", "N2"], "month": [6]}, "tailnum has 2, month has 1"),
        ({"tailnum": [7], "month": 6, "origin": "JFK", "hour": 7, "dest": "LAX"}, "takes BYTES"),
    ],
)
def test_predict_refuses_what_cannot_be_rows(client, rows, told):
    with pytest.raises(hedgerow.InvalidRequest, match=told):
        client.predict("delay", rows)
