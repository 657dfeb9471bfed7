"""How a client reaches a server: the channels' options, and what is remembered of the server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from hedgerow.errors import InvalidRequest
from hedgerow.hedging import DEFAULT, Hedging
from hedgerow.infer_request import Headers


@dataclass(frozen=True, slots=True)
class Tls:
    """Encryption, and how each side proves who it is. Files are PEM.

    Attributes:
        ca: Who may have signed the server's certificate; None: the system's authorities.
        certificate: The client's own certificate chain, for servers that ask for one.
        key: The certificate's private key.
        server_name: The name the server's certificate bears, if it is not the address's.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            OSError: A file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=Path(self.ca).read_bytes() if self.ca else None,
            private_key=Path(self.key).read_bytes() if self.key else None,
            certificate_chain=Path(self.certificate).read_bytes() if self.certificate else None,
        )


#: Methods that gRPC tries again by itself where there is one target; a client with backups sees to the first
#: two itself, since their attempts share a budget.
_HEDGED = ("ModelInfer", "ModelMetadata")
_RETRIED = (*_HEDGED, "ModelConfig", "ServerMetadata")


def options(
    *,
    target: str,
    max_message_bytes: int,
    keepalive: float,
    retries: int,
    tls: Tls | None,
    has_backups: bool = False,
) -> list[tuple[str, int | str]]:
    """The channel arguments for the client's settings."""
    chosen: list[tuple[str, int | str]] = [
        # Without it, channels to one target share one TCP connection, and so one worker of the server.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # The cap of gRPC's reconnect backoff is two minutes; a server that is back should be found.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
    chosen += without_proxy(target)
    if keepalive > 0:
        # Finds dead connections while calls wait on them. An idle channel sends nothing.
        chosen += [
            ("grpc.keepalive_time_ms", int(keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", 5000),
        ]
    several = "," in target
    if several:
        # gRPC would make one of the whole list, which is none that HTTP/2 allows.
        chosen.append(("grpc.default_authority", target.partition(":")[2].partition(",")[0]))
    if has_backups:
        # A backup is asked seldom; when it is, nothing should have to be connected first.
        chosen.append(("grpc.client_idle_timeout_ms", 2**31 - 1))
    if retries <= 0:
        chosen.append(("grpc.enable_retries", 0))
    config = {
        # Of several addresses gRPC would otherwise use the first that answers.
        **({"loadBalancingConfig": [{"round_robin": {}}]} if several else {}),
        **(_retry_config(retries, _RETRIED[2:] if has_backups else _RETRIED) if retries > 0 else {}),
    }
    if config:
        chosen.append(("grpc.service_config", json.dumps(config)))
    if tls and tls.server_name:
        chosen.append(("grpc.ssl_target_name_override", tls.server_name))
    return chosen


def without_proxy(target: str) -> list[tuple[str, int | str]]:
    """Keeps calls to this machine itself from an `http_proxy` in the environment, which gRPC obeys."""
    local = target.startswith(("127.", "localhost:", "[::1]:", "ipv4:127.", "unix:"))
    return [("grpc.enable_http_proxy", 0)] if local else []


def _retry_config(retries: int, methods: Sequence[str]) -> dict[str, object]:
    """Retries of UNAVAILABLE inside the call's deadline (gRFC A6).

    Inference changes nothing on the server, so a second attempt is safe. The
    throttle stops retrying while more than half of the calls fail that way.
    """
    policy = {
        "maxAttempts": min(retries + 1, 5),  # gRPC allows no more
        "initialBackoff": "0.02s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return {
        "methodConfig": [
            {
                "name": [{"service": "inference.GRPCInferenceService", "method": method}],
                "retryPolicy": policy,
            }
            for method in methods
        ],
        "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.5},
    }


@dataclass(frozen=True, slots=True)
class Settings:
    """One client's settings, checked once."""

    target: str
    timeout: float
    channels: int
    max_message_bytes: int
    keepalive: float
    retries: int
    tls: Tls | None
    headers: Headers
    backups: tuple[str, ...] = ()
    hedge: Hedging | None = DEFAULT

    def __post_init__(self) -> None:
        for name, least in (("timeout", 1e-6), ("channels", 1), ("max_message_bytes", 1), ("retries", 0)):
            if not getattr(self, name) >= least:
                raise InvalidRequest(f"{name}={getattr(self, name)!r} is too small; at least {least}")
        for name in self.backups:
            if not name or self.targets.count(name) > 1:
                raise InvalidRequest(
                    f"backups={self.backups!r}: give addresses, each once, not the target's own"
                )
        if self.hedge is None:
            return
        if not self.backups:
            if self.hedge is not DEFAULT:
                raise InvalidRequest("hedge=… without backups=…: there is nobody to hedge with")
        elif self.hedge.after >= self.timeout:
            raise InvalidRequest(
                f"hedging after={self.hedge.after!r} is not below timeout={self.timeout!r}: none would begin"
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """All addresses, the primary's first."""
        return (self.target, *self.backups)

    def options(self, target: str | None = None) -> list[tuple[str, int | str]]:
        """The channel arguments for one of the targets; for the primary, unless told otherwise."""
        return options(
            target=self.target if target is None else target,
            max_message_bytes=self.max_message_bytes,
            keepalive=self.keepalive,
            retries=self.retries,
            tls=self.tls,
            has_backups=bool(self.backups),
        )


def addresses(backups: Sequence[str]) -> tuple[str, ...]:
    """The backups' addresses.

    Raises:
        InvalidRequest: One string, whose letters would be taken for addresses.
    """
    if isinstance(backups, str):
        raise InvalidRequest(f"backups={backups!r}: give a sequence of addresses, [{backups!r}]")
    return tuple(backups)


class DatatypeCache:
    """Input datatypes by model and version, as last asked of the server. Bounded."""

    LIMIT = 1024

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], dict[str, str]] = {}

    def get(self, model: str, version: str) -> dict[str, str] | None:
        """What is known, if anything is."""
        return self._known.get((model, version))

    def put(self, model: str, version: str, datatypes: dict[str, str]) -> None:
        """Remembers an answer of the server."""
        if len(self._known) >= self.LIMIT:
            self._known.clear()
        self._known[model, version] = datatypes
