"""The server's settings: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hedgerow_protos.config import ConfigError, load
from hedgerow_server.settings import Settings
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Read no file or variable of the machine's."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("HEDGEROW_"):
            monkeypatch.delenv(name)


def refusal(flags: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(Settings, flags=flags)
    return str(caught.value)


def test_the_documented_defaults():
    server = load(Settings).server
    assert (server.grpc_port, server.http_port, server.metrics_port) == (8001, 8000, 8002)
    assert server.host == "127.0.0.1"


def test_ageing_is_refused_where_it_would_fail_calls():
    aged = {"server.connection_age_seconds": 60}
    for native in ({}, {"server.transport": "native"}):
        assert "use --transport grpcio" in refusal(aged | native)
    assert load(Settings, flags=aged | {"server.transport": "grpcio"}).server.connection_age_seconds == 60
    assert load(Settings, flags={"server.connection_age_seconds": 0}).transport == "native"


def test_the_ports_of_all_workers_are_ports():
    assert "goes beyond port 65535" in refusal({"server.worker_ports": 65534, "server.workers": 3})
    assert load(Settings, flags={"server.worker_ports": 65534, "server.workers": 2}).server.workers == 2


@pytest.mark.parametrize("given_path", ["iris.onnx", "iris", "folder"])
def test_a_model_may_be_a_file_a_stem_or_a_folder(given_path):
    Path("iris.onnx").touch()
    Path("folder").mkdir()
    Path("folder/model.onnx").touch()
    found = load(Settings, flags={"models": {"iris": given_path}}).models["iris"]
    assert found.is_absolute()
    assert found.name == ("model.onnx" if given_path == "folder" else "iris.onnx")


def test_a_model_without_a_file_is_refused():
    Path("empty").mkdir()
    assert refusal({"models": {"iris": "gone.onnx"}}) == "models.iris (command line): no file gone.onnx"
    assert "holds no model.onnx" in refusal({"models": {"iris": "empty"}})


@pytest.mark.parametrize("name", ["a..b", "../a", "a/b", "a b", "a\0b", "", "x" * 256, ".hidden", "é", "a\n"])
def test_a_name_that_could_be_a_path_or_break_a_line_is_refused(name):
    Path("m.onnx").touch()
    assert "cannot name a model" in refusal({"models": {name: "m.onnx"}})


@given(st.text(alphabet="abz09_-", min_size=1, max_size=255))
def test_plain_names_are_accepted(name):
    from hedgerow_protos.names import model_name_problem

    assert model_name_problem(name) is None


def test_auto_takes_the_transport_that_has_tls_when_tls_is_set():
    Path("cert.pem").touch()
    Path("key.pem").touch()
    tls = {"tls.cert": "cert.pem", "tls.key": "key.pem"}
    assert load(Settings).transport == "native"
    assert load(Settings, flags=tls).transport == "grpcio"
    assert "native transport has no TLS" in refusal({**tls, "server.transport": "native"})


def test_half_of_tls_is_refused():
    Path("cert.pem").touch()
    assert "go together" in refusal({"tls.cert": "cert.pem"})
    assert "client_ca needs" in refusal({"tls.client_ca": "cert.pem"})


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"server.workers": 0}, "server.workers"),
        ({"server.grpc_port": -1}, "server.grpc_port"),
        ({"server.transport": "quic"}, "'auto', 'native' or 'grpcio'"),
        ({"server.control": "nowhere"}, "HOST:PORT"),
        ({"server.control": "host:70000"}, "HOST:PORT"),
        ({"server.drain_seconds": float("nan")}, "server.drain_seconds"),
        ({"deadline.default_seconds": 90}, "above maximum_seconds"),
        ({"deadline.maximum_seconds": float("inf")}, "deadline.maximum_seconds"),
        ({"engine.runners": 0}, "engine.runners"),
        ({"log.level": "loud"}, "log.level"),
    ],
)
def test_values_that_make_no_sense_are_refused(flags, part):
    assert part in refusal(flags)


def test_models_and_a_control_plane_exclude_each_other():
    Path("m.onnx").touch()
    assert "without a control plane" in refusal({"server.control": "c:8101", "models": {"m": "m.onnx"}})
