"""The connection to one backup region: attempts and probes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from hedgerow_protos.open_inference_pb2 import ServerReadyRequest, ServerReadyResponse

from hedgerow_server.resilience.standing import Standing

log = logging.getLogger(__name__)

_SERVICE = "/inference.GRPCInferenceService/"

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A peer that vanished without a word is noticed while attempts wait for it.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # The hedger decides what is tried again, and where.
    ("grpc.enable_retries", 0),
    # A backup that is back is found by the next probes, not after gRPC's own two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # The regions of one machine must not share a connection's fate.
    ("grpc.use_local_subchannel_pool", 1),
)


class AttemptFailed(Exception):
    """A backup gave no answer that can be used; the message is for the log.

    Args:
        message: Why.
        was_sent: Whether the backup has heard of it.
    """

    def __init__(self, message: str, *, was_sent: bool = True) -> None:
        super().__init__(message)
        self.was_sent = was_sent


class Unusable(AttemptFailed):
    """A backup's reply is not given to the caller.

    Args:
        message: Why.
        is_garbage: What answers there is no server for this; else only the model there is another than here.
    """

    def __init__(self, message: str, *, is_garbage: bool) -> None:
        super().__init__(message)
        self.is_garbage = is_garbage


@dataclass(frozen=True, slots=True)
class Reply:
    """A backup's answer as it came: an encoded ModelInferResponse, and the region that it says it is."""

    payload: bytes
    region: str


Metadata = Sequence[tuple[str, str | bytes]]
#: Looks at a reply and returns what its caller gets; raises Unusable if nobody gets it.
Accept = Callable[[Reply], bytes]


class Backup:
    """Owns: the channel to a backup.

    Args:
        address: host:port.
        ca: PEM file of the authorities that its certificate is signed by; None: plaintext.
        probe_seconds: Between probes, and what one gets.
        clock: Seconds, monotonic.
        channel: In place of a connection of its own.
    """

    def __init__(
        self,
        address: str,
        *,
        ca: Path | None = None,
        probe_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        self.address = address
        #: Whether attempts should go there.
        self.standing = Standing(address, probe_seconds=probe_seconds, clock=clock)
        self._probe_seconds = probe_seconds
        self._channel = channel or _connect(address, ca)
        # Messages pass as bytes: the request goes as it came, and what comes back may be anything.
        self._infer: Any = self._channel.unary_unary(f"{_SERVICE}ModelInfer")
        self._server_ready: Any = self._channel.unary_unary(f"{_SERVICE}ServerReady")

    def __repr__(self) -> str:
        return f"<Backup {self.address} {self.standing.breaker.state.name.lower()}>"

    async def infer(
        self, model: str, version: str, payload: bytes, metadata: Metadata, remaining: float, accept: Accept
    ) -> bytes:
        """Makes one attempt; when it is cancelled, the call at the backup is.

        Args:
            model: That it is for.
            version: That must answer; empty: any.
            payload: An encoded ModelInferRequest.
            metadata: Of the attempt.
            remaining: Seconds until the deadline, which the backup sees.
            accept: Judges the reply.

        Returns:
            What `accept` made of it.

        Raises:
            AttemptFailed: No answer, a refusal, or none that is acceptable.
        """
        standing = self.standing
        token = standing.breaker.acquire()
        if token is None:
            raise AttemptFailed(f"{standing.breaker!r}", was_sent=False)
        try:
            call = self._infer(payload, timeout=remaining, metadata=metadata)
            raw = await call
            standing.hear(await call.trailing_metadata() or ())
            answer = accept(Reply(raw, standing.region))
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
            heard = standing.hear(error.trailing_metadata() or ())
            standing.refused(token, model, version, error.code(), reason, heard)
            raise AttemptFailed(reason) from None
        except Unusable as error:
            if error.is_garbage:
                token.failure(str(error))
            else:
                standing.misfit(token, model, version)
            raise
        except asyncio.CancelledError:
            standing.superseded(token, model)
            raise
        else:
            standing.answered(token, model)
            return answer
        finally:
            token.ignore()  # where it is not ended yet: a defect here

    async def follow(self) -> None:
        """Asks the backup once a second whether it is ready, until cancelled.

        So its breaker closes again without a request for a probe, and its load is known before it is needed.
        """
        while True:
            await self.probe()
            await asyncio.sleep(self._probe_seconds)

    async def probe(self) -> None:
        """Asks once; whatever comes back, it is only noted."""
        standing = self.standing
        standing.follow_latency()
        token = standing.breaker.acquire()
        if token is None:
            return
        try:
            call = self._server_ready(ServerReadyRequest().SerializeToString(), timeout=self._probe_seconds)
            reply = ServerReadyResponse.FromString(await call)
            standing.hear(await call.trailing_metadata() or ())
            standing.probed(token, is_ready=reply.ready)
        except grpc.aio.AioRpcError as error:
            token.failure(f"{error.code().name}: {error.details()}")
        except DecodeError:
            token.failure("what it says to a probe is no ServerReadyResponse")
        finally:
            token.ignore()

    async def close(self) -> None:
        """Ends the connection, and the attempts on it."""
        await self._channel.close()


def _connect(address: str, ca: Path | None) -> grpc.aio.Channel:
    if ca is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(root_certificates=ca.read_bytes())
    return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
