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

PLANE = """
- name: plane
  version: 1
  entity: [{name: tailnum, datatype: BYTES}]
  fields:
    - {name: seats, datatype: FP32, default: 150}
    - {name: engines, datatype: INT32, default: 2}
    - {name: year, datatype: FP32, default: 2000}
  ttl: 1h
  stale_ttl: 2h
"""
VIEWS = (
    PLANE
    + """
- name: weather
  version: 3
  entity: [{name: airport, datatype: BYTES}, {name: hour, datatype: INT64}]
  fields: [{name: wind, datatype: FP32, default: -1}]
  ttl: 1h
  stale_ttl: 2h
"""
)
TEXTS = """
- name: airline
  version: 1
  entity: [{name: code, datatype: BYTES}]
  fields:
    - {name: title, datatype: BYTES, default: unknown}
    - {name: fleet, datatype: FP32, default: 0}
    - {name: city, datatype: BYTES, default: nowhere}
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


TEXTS_BINDING = """
  inputs:
    - input: x
      columns:
        - {view: airline@1, fields: [city, title]}
        - request: {name: notes, width: 2}
"""
#: Of a model without a batch dimension, [2, 3].
PAIR_BINDING = """
  inputs:
    - input: x
      columns:
        - {view: plane@1, fields: [seats, year]}
        - request: {name: month}
"""
LINE_BINDING = """
  inputs: [{input: x, columns: [{view: plane@1, fields: [year]}]}]
"""


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
        (airline,) = map(canonical, parse_views(TEXTS, source="views"))
        await fill(
            dsn,
            airline,
            {
                ("UA",): {"title": "United", "fleet": 900, "city": "Chicago"},
                ("a|b\\\n\0",): {"title": "", "fleet": 1, "city": "Zürich"},
            },
        )

    asyncio.run(fill_both())
    return dsn


def bound_model(directory: Path, text: str) -> Path:
    return bound(zoo.identity(directory / "model.onnx", "FP32", ("batch", 5)), text)


def bound(model: Path, text: str) -> Path:
    """Puts serving.yaml beside a model."""
    model.with_name("serving.yaml").write_text(text)
    return model


@pytest.fixture(scope="module")
def running(
    server: Serve, transport: str, dsn: str, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> ServerProcess:
    here = tmp_path_factory.mktemp("bound")
    line = zoo.identity(here / "line" / "model.onnx", "FP32", ("batch",))
    later = zoo.identity(here / "later" / "model.onnx", "FP32", ("batch",))
    return server(
        {
            "delay": bound_model(here, serving()),
            "texts": bound(
                zoo.identity(here / "texts" / "model.onnx", "BYTES", ("batch", 4)),
                serving(TEXTS, TEXTS_BINDING),
            ),
            "pair": bound(zoo.no_batch(here / "pair" / "model.onnx"), serving(PLANE, PAIR_BINDING)),
            "line": bound(line, serving(PLANE, LINE_BINDING)),
            "later": bound(
                later,
                serving(PLANE.replace("version: 1", "version: 2"), LINE_BINDING.replace("@1", "@2")),
            ),
        },
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
        ({"origin": np.array([""], object)}, "airport is empty"),
        ({"origin": np.array(["|" * 300], object)}, "an id of 602 bytes"),
        ({"tailnum": np.array([b"\xff\xfe"], object)}, "not UTF-8"),
        ({"tailnum": np.array([True])}, "takes BYTES"),
        ({"hour": np.array([7.0])}, "takes INT64"),
        ({"hour": np.array([7], np.int32)}, "takes INT64"),
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


@pytest.mark.parametrize(
    ("codes", "expected", "freshness"),
    [
        (["UA"], [["Chicago", "United", "a", "b"]], "fresh"),
        (
            ["a|b\\\n\0", "ZZ", "UA"],
            [["Zürich", "", "a", "b"], ["nowhere", "unknown", "a", "b"], ["Chicago", "United", "a", "b"]],
            "default",
        ),
    ],
    ids=["one", "several"],
)
def test_an_input_of_text_is_laid_out_from_fields_of_text(client, codes, expected, freshness):
    notes = np.array([["a", "b"]] * len(codes), object)
    result = client.infer("texts", {"code": np.array(codes, object), "notes": notes})
    assert [[text.decode() for text in row] for row in result["y"]] == expected
    assert result.features == freshness


def test_a_model_without_a_batch_dimension_takes_as_many_ids_as_it_has_rows(client):
    ids = np.array(["N1", "N404"], object)
    result = client.infer("pair", {"tailnum": ids, "month": np.array([6, 7], np.float32)})
    np.testing.assert_array_equal(result["y"], [[56, 2000, 7], [151, 2001, 8]])
    with pytest.raises(hedgerow.InvalidRequest, match=r"takes \[2, 1\]"):
        client.infer("pair", {"tailnum": ids[:1], "month": np.array([6], np.float32)})
    told = {tensor.name: tensor.shape for tensor in client.metadata("pair").inputs}
    assert told == {"tailnum": (2, 1), "month": (2, 1)}


def test_an_input_without_columns_takes_one_field(client):
    result = client.infer("line", {"tailnum": np.array(["N404", "N1", "N1"], object)})
    np.testing.assert_array_equal(result["y"], [2000, 1999, 1999])


def test_a_view_version_that_the_store_does_not_have_is_its_default_and_no_outage(client, running):
    for _ in range(10):
        result = client.infer("later", {"tailnum": np.array(["N1"], object)})
        np.testing.assert_array_equal(result["y"], [2000])
        assert result.features == "default"
    with urllib.request.urlopen(f"http://{running.http}/health/dependencies") as reply:
        assert b'"feature_store":{"state":"closed"' in reply.read()
    np.testing.assert_array_equal(ask(client)["y"], [[55, 1999, 6, 12.5, 3]])


def test_ids_of_any_bytes_name_no_other_entity(client):
    """Separators and escapes; none of them meets N1 or the row of a|b."""
    for odd in ("N1|", "|N1", "N1\\", "N1\n", "N1\0", "n1", " N1"):
        result = ask(client, tailnum=np.array([odd], object))
        np.testing.assert_array_equal(result["y"], [[150, 2000, 6, 12.5, 3]])
    for odd, wind in (("a|b", 9), ("a\\|b", -1), ("a", -1), ("a|b|-1", -1), ("a|b\\", -1)):
        result = ask(client, origin=np.array([odd], object), hour=np.array([-1]))
        np.testing.assert_array_equal(result["y"], [[55, 1999, 6, wind, -1]])
