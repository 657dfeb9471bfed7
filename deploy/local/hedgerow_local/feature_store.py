"""The stack's own PostgreSQL and Valkey for features, unless the configuration names others."""

from __future__ import annotations

import os
import signal
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hedgerow_local import postgres_server, sockets, valkey_server

#: The servers' settings features.store and features.cache.
STORE, CACHE = "HEDGEROW_FEATURES__STORE", "HEDGEROW_FEATURES__CACHE"
_CONFIG = Path("hedgerow.toml")


@dataclass(frozen=True, slots=True)
class Program:
    """One that is not ours: where it listens, how to run it, how it says that it is ready, what stops it."""

    where: str
    command: tuple[str, ...]
    ready_text: str
    stop_signal: signal.Signals


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """What the stack runs itself.

    Attributes:
        store: PostgreSQL's DSN; empty if the configuration names another, which the servers find there.
        cache: Valkey's URL, or empty, likewise.
        programs: What to run, by name.
        socket_directory: Where they listen; made, and entered by this user alone.
    """

    store: str
    cache: str
    programs: Mapping[str, Program]
    socket_directory: Path

    def environment(self) -> dict[str, str]:
        """What the servers must be told."""
        return {key: value for key, value in ((STORE, self.store), (CACHE, self.cache)) if value}

    def close(self) -> None:
        """Takes the sockets away, whatever a killed program left."""
        for left in self.socket_directory.iterdir():
            left.unlink()
        self.socket_directory.rmdir()


def choose(root: Path, settings: Mapping[str, str]) -> FeatureStore:
    """Decides what the stack runs itself.

    Args:
        root: The stack's directory.
        settings: Environment variables that its processes will get besides this one's.
    """
    directory = sockets.make(root)
    store = cache = ""
    programs: dict[str, Program] = {}
    if not _is_named("store", settings):
        store = sockets.store_dsn(directory)
        command = postgres_server.command(root / "postgres", directory)
        programs["postgres"] = Program(store, command, postgres_server.READY, postgres_server.STOP)
    if not _is_named("cache", settings):
        cache = sockets.cache_url(directory)
        command = valkey_server.command(directory)
        programs["valkey"] = Program(cache, command, valkey_server.READY, signal.SIGTERM)
    return FeatureStore(store, cache, programs, directory)


def _is_named(key: str, settings: Mapping[str, str]) -> bool:
    """Whether the configuration says where `features.<key>` is, itself or in a file."""
    environment = {**os.environ, **settings}
    names = (key, f"{key}_file")
    if any(environment.get(f"HEDGEROW_FEATURES__{name.upper()}") for name in names):
        return True
    try:
        section: Any = tomllib.loads(_CONFIG.read_text(encoding="utf-8")).get("features")
    except (OSError, ValueError):
        return False  # The servers say what is wrong with it.
    return isinstance(section, Mapping) and any(section.get(name) for name in names)
