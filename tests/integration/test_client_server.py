"""Both clients against hedgerow-server itself: the same numbers as ONNX Runtime in process."""

from __future__ import annotations

import re
import subprocess
import sys

import hedgerow
import numpy as np
import onnxruntime
import pytest
import zoo
from client_peer import Asyncio, Blocking
from hedgerow.infer_request import InferRequest


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    return {
        "mlp": zoo.mlp(home / "mlp.onnx"),
        "several": zoo.several(home / "several.onnx"),
        **{
            f"echo-{datatype}": zoo.identity(home / f"{datatype}.onnx", datatype)
            for datatype in ("BOOL", "INT8", "UINT16", "INT64", "FP16", "FP64", "BYTES")
        },
    }


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request, models, tmp_path_factory):
    home = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "hedgerow_server", "--transport", request.param]
    command += ["--grpc-port=0", "--http-port=0", "--metrics-port=0"]
    for name, path in models.items():
        command += ["--model", f"{name}={path}"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=home)
    try:
        # Ends at the ready line, or when the process does; pytest's own timeout bounds it.
        for line in process.stdout:
            if ready := re.match(rb"hedgerow-server ready grpc=(\S+)", line):
                yield ready[1].decode()
                break
        else:
            pytest.fail((home / "log").read_text()[-3000:])
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.fixture(params=[Blocking, Asyncio])
def client(request, server):
    made = request.param(server)
    yield made
    made.close()


def expected(path, inputs):
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def test_one_model_gives_what_onnx_runtime_gives(client, models):
    x = np.random.default_rng(1).normal(size=(5, 32)).astype(np.float32)
    result = client("infer", "mlp", {"x": x})
    np.testing.assert_allclose(result["y"], expected(models["mlp"], {"x": x})["y"], rtol=1e-6)
    assert (result.model_version, result.outcome) == ("1", "primary")
    assert len(result.request_id) >= 8
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", result.traceparent)


def test_several_inputs_and_outputs_and_a_choice_of_them(client, models):
    inputs = {
        "a": np.array([[1, 5]], np.float32),
        "b": np.array([[2, 3]], np.float32),
    }
    whole = client("infer", "several", inputs)
    for name, array in expected(models["several"], inputs).items():
        np.testing.assert_array_equal(whole[name], array)
    assert list(client("infer", "several", inputs, outputs=["larger"])) == ["larger"]


@pytest.mark.parametrize(
    "array",
    [
        np.array([[True, False, True]]),
        np.array([[-1, 2, 3]], np.int8),
        np.array([[1, 2, 65535]], np.uint16),
        np.array([[1, 2, -(2**60)]], np.int64),
        np.array([[0.5, np.inf, np.nan]], np.float16),
        np.array([[0.1, 1e300, -0.0]]),
        np.array([[b"", b"nul\0", "ä".encode()]], dtype=object),
    ],
    ids=lambda array: str(array.dtype),
)
def test_a_tensor_comes_back_as_it_went(client, array):
    datatype = {"bool": "BOOL", "float16": "FP16", "float64": "FP64", "object": "BYTES"}.get(
        array.dtype.name, array.dtype.name.upper()
    )
    back = client("infer", f"echo-{datatype}", {"x": array})["y"]
    assert back.dtype == array.dtype
    if datatype == "BYTES":
        assert back.tolist() == array.tolist()
    else:
        assert back.tobytes() == array.tobytes()


def test_lists_are_converted_to_what_the_model_takes(client):
    assert client("infer", "echo-INT8", {"x": [[1, 2, 3]]})["y"].dtype == np.int8
    assert client("infer", "echo-BYTES", {"x": [["a", "b", "c"]]})["y"].tolist() == [[b"a", b"b", b"c"]]
    with pytest.raises(hedgerow.InvalidRequest, match="holds 1 to 300"):
        client("infer", "echo-INT8", {"x": [[1, 2, 300]]})


@pytest.mark.parametrize(
    ("model", "inputs", "kwargs", "kind"),
    [
        ("nope", {"x": np.zeros((1, 32), np.float32)}, {}, hedgerow.NotFound),
        ("mlp", {"x": np.zeros((1, 32), np.float32)}, {"version": 9}, hedgerow.NotFound),
        ("mlp", {"x": np.zeros((1, 32))}, {}, hedgerow.InvalidRequest),
        ("mlp", {"x": np.zeros((1, 31), np.float32)}, {}, hedgerow.InvalidRequest),
        ("mlp", {"z": np.zeros((1, 32), np.float32)}, {}, hedgerow.InvalidRequest),
        ("mlp", {}, {}, hedgerow.InvalidRequest),
        ("mlp", {"x": np.zeros((0, 32), np.float32)}, {}, hedgerow.InvalidRequest),
    ],
)
def test_what_does_not_fit_is_refused_with_its_own_error(client, model, inputs, kwargs, kind):
    with pytest.raises(kind) as caught:
        client("infer", model, inputs, **kwargs)
    assert caught.value.request_id


def test_the_server_describes_itself_and_its_models(client):
    assert client("live")
    assert client("ready")
    assert client("model_ready", "mlp")
    assert not client("model_ready", "nope")
    assert client("server_metadata").extensions
    metadata = client("metadata", "mlp")
    assert metadata.inputs == (hedgerow.TensorMetadata("x", "FP32", (-1, 32)),)
    assert metadata.versions == ("1",)
    assert client("config", "mlp").max_batch_size > 0
    assert ("mlp", "1", "READY") in [
        (one.name, one.version, one.state) for one in client("index", ready=True)
    ]


def test_statistics_count_rows_and_requests(client):
    before = client("statistics", "mlp")[0]
    client("infer", "mlp", {"x": np.zeros((4, 32), np.float32)})
    after = client("statistics", "mlp")[0]
    assert after.inference_count - before.inference_count == 4
    assert after.success_count - before.success_count == 1
    assert after.batches[4] - before.batches.get(4, 0) == 1


def test_a_stream_answers_each_request_and_outlives_a_failure(client):
    rows = [np.full((1, 3), value, np.int8) for value in range(20)]
    asked = [InferRequest("echo-INT8", {"x": row}, request_id=str(at)) for at, row in enumerate(rows)]
    asked.insert(10, InferRequest("echo-INT8", {"x": np.zeros((1, 4), np.int8)}, request_id="wrong"))
    replies = {reply.request_id: reply for reply in client.stream(asked, return_errors=True)}
    assert isinstance(replies.pop("wrong"), hedgerow.HedgerowError)
    assert sorted(replies) == sorted(str(at) for at in range(20))
    assert all(replies[str(at)]["y"].tolist() == rows[at].tolist() for at in range(20))
