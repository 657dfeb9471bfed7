"""Where the local stack listens, and how its parts reach each other."""

import pytest
from hedgerow_local.addresses import around_proxies
from hedgerow_local.lock import AlreadyRunning, take


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch):
    """GRPC and requests both send loopback calls to http_proxy unless told not to."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "example.org,localhost")
    assert around_proxies()["no_proxy"] == "example.org,localhost,127.0.0.1"
    assert around_proxies()["NO_PROXY"] == around_proxies()["no_proxy"]


def test_a_directory_has_one_holder_who_is_named(tmp_path):
    import os

    with (
        take(tmp_path / "lock"),
        pytest.raises(AlreadyRunning, match=f"Process {os.getpid()} already works in"),
    ):
        take(tmp_path / "lock")
    take(tmp_path / "lock").close()
