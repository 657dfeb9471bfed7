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


# ------------------------------------------------------------- hedges, faults


def test_backups_are_a_list_or_as_the_environment_has_them_with_commas(monkeypatch):
    Path("hedgerow.toml").write_text('[hedge]\nbackups = ["west:8001", "[::1]:9001"]\n')
    assert load(Settings, file=Path("hedgerow.toml")).hedge.backups == ("west:8001", "[::1]:9001")
    monkeypatch.setenv("HEDGEROW_HEDGE__BACKUPS", " west:8001, north:8001 ,")
    assert load(Settings).hedge.backups == ("west:8001", "north:8001")
    monkeypatch.setenv("HEDGEROW_HEDGE__BACKUPS", "")
    assert load(Settings).hedge.backups == ()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"hedge.backups": "west"}, "is no HOST:PORT"),
        ({"hedge.backups": "west:99999"}, "is no HOST:PORT"),
        ({"hedge.backups": "west:0"}, "is no HOST:PORT"),
        ({"hedge.backups": ":8001"}, "is no HOST:PORT"),
        ({"hedge.backups": "http://west:8001/"}, "is no HOST:PORT"),
        ({"hedge.backups": ["a:1", ""]}, "named once"),
        ({"hedge.backups": "a:1,b:1,a:1"}, "named once"),
        ({"hedge.backups": 7}, "hedge.backups"),
        ({"hedge.budget_percent": 0}, "greater than 0"),
        ({"hedge.budget_percent": 5.1}, "less than or equal to 5"),
        ({"hedge.budget_percent": float("nan")}, "hedge.budget_percent"),
        ({"hedge.burst": 0}, "greater than or equal to 1"),
        ({"hedge.after_ms": 0}, "greater than 0"),
        ({"hedge.after_ms": -1}, "greater than 0"),
        ({"hedge.after_ms": float("inf")}, "hedge.after_ms"),
        ({"hedge.after_ms": "30ms"}, "hedge.after_ms"),
        ({"hedge.probe_seconds": 0}, "hedge.probe_seconds"),
        ({"hedge.ca": "gone.pem"}, "hedge.ca"),
        ({"hedge.backups": "127.0.0.1:8001"}, "is this server itself"),
        (
            {"hedge.backups": "a:1,[::1]:7", "server.host": "::1", "server.grpc_port": 7},
            "is this server itself",
        ),
        ({"hedge.adaptive": "perhaps"}, "hedge.adaptive"),
        ({"fault.delay_percent": 1}, "go together"),
        ({"fault.delay_ms": 500}, "go together"),
        ({"fault.delay_percent": 101, "fault.delay_ms": 1}, "less than or equal to 100"),
        ({"fault.abort_percent": -1}, "greater than or equal to 0"),
        ({"fault.abort_percent": float("nan")}, "fault.abort_percent"),
        ({"fault.delay_percent": 1, "fault.delay_ms": float("inf")}, "fault.delay_ms"),
    ],
)
def test_hedge_and_fault_settings_that_cannot_work_are_refused_by_name(flags, says):
    assert says in refusal(flags)


def test_a_hedge_after_the_deadline_is_refused_where_there_are_backups():
    late = {"hedge.after_ms": 2000, "deadline.default_seconds": 2}
    said = refusal(late | {"hedge.backups": "west:8001"})
    assert "hedge.after_ms 2000 is not below deadline.default_seconds 2" in said
    assert load(Settings, flags=late).hedge.backups == ()
    soon = {"hedge.after_ms": 1999, "deadline.default_seconds": 2, "hedge.backups": "west:8001"}
    assert load(Settings, flags=soon).hedge.after_ms == 1999


def test_the_limits_of_admission_fit_together():
    assert "min_limit 10 is above max_limit 5" in refusal(
        {"admission.min_limit": 10, "admission.max_limit": 5}
    )
    fixed = {"admission.adaptive": False, "admission.max_limit": 5, "admission.min_limit": 5}
    assert load(Settings, flags=fixed).admission.max_limit == 5
    assert "admission.max_limit" in refusal({"admission.max_limit": 0, "admission.min_limit": 1})
