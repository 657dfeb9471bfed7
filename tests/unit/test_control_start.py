"""What the control plane is told at its start, and finds on its disk."""

from __future__ import annotations

import errno
import os

import pytest
from hedgerow_control.app import StartError, _state_directory
from hedgerow_control.rollout.state import PreparedRecord, State, StateFile
from hedgerow_control.settings import Settings
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos.config import ConfigError, load


@pytest.mark.parametrize(
    "uri", ["http://mlflow:5000", "https://mlflow.example.org/team", "http://[::1]:5000"]
)
def test_an_mlflow_server_is_named_by_its_url(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(Settings, flags={"registry.uri": uri}).registry.uri == uri


@pytest.mark.parametrize("uri", ["mlflow:5000", "mlruns", "sqlite:///mlflow.db", "http://", "http://a:b", ""])
def test_what_is_no_url_of_a_server_is_refused_with_an_example(uri, tmp_path, monkeypatch):
    """MLflow's client would take most of them for a folder and make it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"registry\.uri .*http://127\.0\.0\.1:5000"):
        load(Settings, flags={"registry.uri": uri})


def test_a_password_in_the_url_is_refused_unseen(tmp_path, monkeypatch):
    """The address is on the ready line, in the status and in every error of the registry's client."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        load(Settings, flags={"registry.uri": "http://ada:s3cret@mlflow:5000"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"snapshot_version": "x"}',
        State(snapshot_version=3, snapshot=b"\xff\xff\xff").encode(),
        State(prepared=[PreparedRecord("m", "s", b"\xff\xff\xff")]).encode(),
    ],
    ids=["empty", "torn", "type", "snapshot", "prepared"],
)
def test_a_damaged_state_is_set_aside_and_the_start_is_empty(content, tmp_path):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    assert StateFile(path).load() == State()
    assert path.with_suffix(".unreadable").read_bytes() == content


def test_a_saved_state_comes_back_whole(tmp_path):
    state = State(
        snapshot_version=7,
        snapshot=pb.Snapshot(version=7).SerializeToString(),
        prepared=[PreparedRecord("m", "s", pb.ModelVersion(version="1").SerializeToString())],
    )
    file = StateFile(tmp_path / "state.json")
    file.save(state.encode())
    assert file.load() == state


def test_only_the_lock_says_that_another_control_plane_is_there(tmp_path):
    """An error of the same kind from anywhere else is not blamed on the directory."""
    with (
        pytest.raises(BlockingIOError),
        _state_directory(tmp_path),
    ):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    with _state_directory(tmp_path), pytest.raises(StartError, match="another control plane"):
        _state_directory(tmp_path).__enter__()
