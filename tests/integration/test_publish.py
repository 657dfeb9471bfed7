"""Publishing against a real MLflow server: what arrives there, and what never does."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import hedgerow
import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
import zoo
from hedgerow.publishing import publish
from hedgerow_protos import serving_spec
from mlflow import MlflowClient
from onnx import TensorProto, helper, numpy_helper

# A loaded machine takes a minute to start MLflow.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """An MLflow server on a free port, with SQLite and files in a temporary directory."""
    home = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as listener, (home / "log").open("wb") as log:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # a connection made before the server accepts waits for it
        descriptor = listener.fileno()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "hedgerow_local.mlflow_server",
                f"--fd={descriptor}",
                f"--directory={home}",
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[descriptor],
        )
        uri = "http://{}:{}".format(*listener.getsockname())
    # Ends at the ready line, or when the process does; pytest's own timeout bounds it.
    line = process.stdout.readline()
    try:
        assert line.startswith(b"mlflow ready"), (home / "log").read_text()[-2000:]
        yield uri
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.fixture(autouse=True)
def _no_registry_in_the_environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


def linear(seed: int = 0) -> onnx.ModelProto:
    """Y = x @ w; over 1 KiB of weights, so that they become external data."""
    weights = np.random.default_rng(seed).normal(size=(3, 200)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 200])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def download(registry: str, name: str, version: str, to: Path) -> Path:
    """As the control plane fetches a version."""
    mlflow.set_tracking_uri(registry)
    mlflow.set_registry_uri(registry)
    return Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=str(to)))


@pytest.mark.parametrize("given", ["message", "bytes", "path", "path with external data"])
def test_a_published_version_holds_the_model_and_its_serving_yaml(registry, tmp_path, given):
    model = linear()
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data="external" in given, location="weights.bin")
    model = linear()
    what = {"message": model, "bytes": model.SerializeToString()}.get(given, path)
    serving = {"batching": {"max_batch_size": 8}, "nan": {"inputs": "reject"}}
    published = publish(what, f"holds-{given.replace(' ', '-')}", registry_uri=registry, serving=serving)
    assert (published.version, published.alias) == ("1", "champion")

    files = download(registry, published.name, "1", tmp_path / "down")
    assert {"model.onnx", "model.onnx.data", "serving.yaml", "MLmodel"} <= {f.name for f in files.iterdir()}
    spec = serving_spec.parse((files / "serving.yaml").read_text(), source="serving.yaml")
    assert spec.batching.max_batch_size == 8
    x = np.ones((2, 3), np.float32)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    got = onnxruntime.InferenceSession(files / "model.onnx").run(None, {"x": x})[0]
    np.testing.assert_array_equal(got, expected)
    assert model == linear(), "the caller's message was changed"


def test_mlflows_own_onnx_flavor_reads_it_back(registry, tmp_path):
    published = publish(linear(), "flavor", registry_uri=registry)
    files = download(registry, published.name, published.version, tmp_path)
    loaded = mlflow.onnx.load_model(str(files))
    assert [value.name for value in loaded.graph.output] == ["y"]
    signature = mlflow.models.get_model_info(str(files)).signature
    assert signature.inputs.input_names() == ["x"]


def test_tags_and_alias_follow_the_conventions(registry):
    first = publish(
        linear(),
        "tagged",
        registry_uri=registry,
        version_tags={"owner": "flights", "cost_per_1k": "0.2"},
        tags={"hedgerow.weight.challenger": "10"},
    )
    second = publish(linear(seed=1), "tagged", registry_uri=registry, alias="challenger")
    third = publish(linear(seed=2), "tagged", registry_uri=registry, alias=None)
    assert [one.version for one in (first, second, third)] == ["1", "2", "3"]
    client = MlflowClient(tracking_uri=registry, registry_uri=registry)
    model = client.get_registered_model("tagged")
    assert model.tags == {"hedgerow.serve": "true", "hedgerow.weight.challenger": "10"}
    assert model.aliases == {"champion": "1", "challenger": "2"}
    assert client.get_model_version("tagged", "1").tags == {"owner": "flights", "cost_per_1k": "0.2"}


def test_equal_models_have_equal_files(registry, tmp_path):
    """So that a server that has one version needs nothing more for the other."""
    files = []
    for _ in range(2):
        version = publish(linear(), "equal", registry_uri=registry).version
        files.append(download(registry, "equal", version, tmp_path / version))
    for name in ("model.onnx", "model.onnx.data", "serving.yaml"):
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes()


def test_a_serving_yaml_is_taken_as_it_is_written(registry, tmp_path):
    serving = tmp_path / "serving.yaml"
    serving.write_text("# rows per run\nbatching:\n  max_batch_size: 4\n")
    published = publish(linear(), "as-written", registry_uri=registry, serving=serving)
    files = download(registry, published.name, "1", tmp_path / "down")
    assert (files / "serving.yaml").read_text() == serving.read_text()


def test_progress_names_each_step_and_mlflow_keeps_quiet(registry, capfd):
    steps = []
    publish(linear(), "quiet", registry_uri=registry, progress=lambda step, done: steps.append((step, done)))
    assert [done for _, done in steps] == sorted(done for _, done in steps)
    assert (steps[0][0], steps[-1]) == ("check the model", ("published", 1.0))
    assert "point champion at version 1" in [step for step, _ in steps]
    assert capfd.readouterr() == ("", "")


def _unknown_operator(path: Path) -> Path:
    model = linear()
    model.graph.node[0].op_type = "Nope"
    onnx.save(model, path)
    return path


def _garbage(path: Path) -> Path:
    path.write_bytes(b"garbage" * 10)
    return path


REFUSED = {
    "garbage": (_garbage, "is not a valid ONNX model"),
    "truncated": (zoo.truncated, "is not a valid ONNX model"),
    "absent": (lambda path: path, "model.onnx"),
    "unknown operator": (_unknown_operator, "No Op registered for Nope"),
    "custom operator": (zoo.custom_operator, "custom operator com.example.Sparkle"),
    "map": (zoo.zipmap, '{"zipmap": False}'),
    "sequence": (zoo.sequence_output, "ConcatFromSequence"),
    "optional": (zoo.optional_input, "an optional"),
    "type": (zoo.uncarried, "a tensor of BFLOAT16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_no_server_could_serve_is_refused_before_mlflow_is_asked(case, tmp_path):
    """Nothing listens at the registry's address, so any attempt would fail differently."""
    make, message = REFUSED[case]
    with pytest.raises(hedgerow.ModelRefused) as caught:
        publish(make(tmp_path / "model.onnx"), "fine", registry_uri="http://127.0.0.1:1")
    assert message in caught.value.details


@pytest.mark.parametrize("given", [b"", b"garbage" * 10, onnx.ModelProto()])
def test_bytes_and_messages_are_checked_too(given):
    with pytest.raises(hedgerow.ModelRefused, match="not a valid ONNX model"):
        publish(given, "fine", registry_uri="http://127.0.0.1:1")


@pytest.mark.parametrize("name", ["", "..", "a..b", "a/b", "a b", "a\0b", ".hidden", "x" * 256, "ü"])
def test_a_bad_name_is_refused(name):
    with pytest.raises(hedgerow.ModelRefused, match="cannot name a model"):
        publish(linear(), name, registry_uri="http://127.0.0.1:1")


@pytest.mark.parametrize("alias", ["", "v1", "latest", "a b"])
def test_a_bad_alias_is_refused(alias):
    with pytest.raises(hedgerow.ModelRefused, match="cannot be an alias"):
        publish(linear(), "fine", alias=alias, registry_uri="http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("serving", "message"),
    [
        ({"batchin": {}}, "batching"),
        ({"warmup": {"inputs": {"z": {"shape": [1]}}}}, "the model has 'x'"),
        ({"batching": object()}, "YAML"),
        (Path("/nonexistent/serving.yaml"), "/nonexistent/serving.yaml"),
    ],
)
def test_a_bad_serving_spec_is_refused(serving, message):
    with pytest.raises(hedgerow.ModelRefused) as caught:
        publish(linear(), "fine", serving=serving, registry_uri="http://127.0.0.1:1")
    assert message in caught.value.details


def test_an_unreachable_registry_is_told_at_once():
    """MLflow's own client would retry for minutes."""
    with pytest.raises(hedgerow.RegistryError, match=r"http://127\.0\.0\.1:1 cannot be reached: .*refused"):
        publish(linear(), "fine", registry_uri="http://127.0.0.1:1")


def test_the_command_publishes_and_reports(registry, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(linear(), path)
    command = [sys.executable, "-m", "hedgerow", "publish", str(path), "--name", "by-command"]
    command += ["--registry", registry, "--tag", "owner=me", "--tag", "hedgerow.weight.economy=5", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["version"] == "1"
    client = MlflowClient(tracking_uri=registry, registry_uri=registry)
    assert client.get_registered_model("by-command").tags["hedgerow.weight.economy"] == "5"
    assert client.get_model_version("by-command", "1").tags == {"owner": "me"}
