"""The gRPC server: one set of methods, two transports.

`grpcio` serves everything, with TLS if asked. `native` puts the native front
on the port, for ModelInfer, and the same grpcio server behind it on a Unix
socket, for everything else.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from hedgerow_protos import open_inference_pb2 as oip

from hedgerow_server import ports
from hedgerow_server.answer import Answerer
from hedgerow_server.errors import FailedPrecondition, ServingError, defect
from hedgerow_server.rpc.describe import DescribeHandlers
from hedgerow_server.rpc.health import Health
from hedgerow_server.rpc.infer import InferHandlers
from hedgerow_server.rpc.native import NativeTransport
from hedgerow_server.rpc.operate import OperateHandlers
from hedgerow_server.settings import Settings

SERVICE = "inference.GRPCInferenceService"

#: Connections that do not finish their handshake, or keep silent, are closed.
_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.server_handshake_timeout_ms", 20_000),
)

#: In a reply's trailing metadata, where there are several: which worker answered, of how many (`1/4`).
WORKER = "hedgerow-worker"
#: A worker that was started again has its share of the connections after so long.
CONNECTION_AGE_SECONDS = 300.0
#: What replies under way and calls without requests (health watches, idle
#: streams) get after the last answer of a drain.
LINGER_SECONDS = 1.0
#: How long a draining server at least answers UNAVAILABLE before it closes its connections.
NOTICE_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Handlers:
    """Everything that answers a method."""

    infer: InferHandlers
    describe: DescribeHandlers
    operate: OperateHandlers
    health: Health


class RpcServer:
    """Owns the listeners of one worker.

    Args:
        settings: host, port, transport, TLS, limits.
        answerer: the request path, which the native transport hands its calls to.
        handlers: the methods.
        directory: for the socket behind the native front. Only this user may enter it: the
            socket asks nobody who they are.
        said: trailing metadata of every reply to ModelInfer.
        own_port: another port to listen on, which no other worker has.
    """

    def __init__(
        self,
        settings: Settings,
        answerer: Answerer,
        handlers: Handlers,
        directory: Path,
        *,
        said: Sequence[tuple[str, str]] = (),
        own_port: int | None = None,
    ) -> None:
        self._settings = settings
        self._answerer = answerer
        self._handlers = handlers
        self._grpcio: grpc.aio.Server | None = None
        self._native: list[NativeTransport] = []
        self._directory = directory
        self._said = said
        ports_here = [settings.server.grpc_port, *([] if own_port is None else [own_port])]
        self._addresses = [ports.join(settings.server.host, port) for port in ports_here]

    async def start(self) -> int:
        """Listens; returns the port that all workers share.

        Raises:
            RuntimeError, OSError: the port cannot be bound.
        """
        server = self._settings.server
        options = (
            ("grpc.max_receive_message_length", server.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 1),
            ("grpc.max_concurrent_streams", 1024),
            *_KEEPALIVE,
            *_ageing(server.connection_age_seconds, self._settings.transport),
        )
        self._grpcio = grpc.aio.server(options=options)
        self._add_services(self._grpcio)
        if self._settings.transport == "grpcio":
            listening = [self._add_port(self._grpcio, address) for address in self._addresses]
            await self._grpcio.start()
            return listening[0]
        path = str(self._directory / f"{os.getpid()}.sock")
        self._grpcio.add_insecure_port(f"unix:{path}")
        await self._grpcio.start()
        self._native = [
            NativeTransport(self._answerer, address, path, said=self._said) for address in self._addresses
        ]
        for native in self._native:
            native.start()
        return self._native[0].port

    def _add_port(self, server: grpc.aio.Server, address: str) -> int:
        tls, credentials = self._settings.tls, self._credentials()
        if credentials is None:
            return server.add_insecure_port(address)
        try:
            return server.add_secure_port(address, credentials)
        except RuntimeError:
            # The port is reserved, so it is the files; grpcio does not say which.
            raise FailedPrecondition(
                f"TLS cannot be set up: tls.cert {tls.cert} and tls.key {tls.key} must be PEM "
                "and belong together"
            ) from None

    def _credentials(self) -> grpc.ServerCredentials | None:
        tls = self._settings.tls
        if tls.cert is None or tls.key is None:
            return None
        return grpc.ssl_server_credentials(
            [(tls.key.read_bytes(), tls.cert.read_bytes())],
            root_certificates=tls.client_ca.read_bytes() if tls.client_ca else None,
            require_client_auth=tls.client_ca is not None,
        )

    def _add_services(self, server: grpc.aio.Server) -> None:
        infer, describe, operate = self._handlers.infer, self._handlers.describe, self._handlers.operate
        methods = {
            # The request path parses and encodes by itself: no serializers.
            "ModelInfer": grpc.unary_unary_rpc_method_handler(infer.infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(infer.stream),
            "ServerLive": _unary(describe.server_live, oip.ServerLiveRequest),
            "ServerReady": _unary(describe.server_ready, oip.ServerReadyRequest),
            "ModelReady": _unary(describe.model_ready, oip.ModelReadyRequest),
            "ServerMetadata": _unary(describe.server_metadata, oip.ServerMetadataRequest),
            "ModelMetadata": _unary(describe.model_metadata, oip.ModelMetadataRequest),
            "ModelConfig": _unary(describe.model_config, oip.ModelConfigRequest),
            "ModelStatistics": _unary(describe.model_statistics, oip.ModelStatisticsRequest),
            "RepositoryIndex": _unary(describe.repository_index, oip.RepositoryIndexRequest),
            "RepositoryModelLoad": _unary(operate.load, oip.RepositoryModelLoadRequest),
            "RepositoryModelUnload": _unary(operate.unload, oip.RepositoryModelUnloadRequest),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        health_pb2_grpc.add_HealthServicer_to_server(self._handlers.health.servicer, server)
        if self._settings.server.reflection:
            reflection.enable_server_reflection(
                (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server, pool=_reflected()
            )

    async def stop(self, grace: float) -> None:
        """Gives calls under way `grace` seconds, then closes; the answerer refuses new ones by now."""
        assert self._grpcio is not None
        # The listeners stay open meanwhile: the answerer refuses new calls as UNAVAILABLE, which
        # callers send elsewhere. grpcio cancels calls that meet its shutdown, and nobody retries those.
        try:
            async with asyncio.timeout(grace):
                await asyncio.sleep(NOTICE_SECONDS)
                await self._answerer.idle()
        except TimeoutError:
            self._answerer.abandon()
        # Every request has its answer, which is to reach its caller however short the grace was; who only
        # watches or keeps a stream open gets no more time.
        await self._grpcio.stop(LINGER_SECONDS)
        for native in self._native:
            await native.close()
        await self._grpcio.stop(0)


def _ageing(seconds: float | None, transport: str) -> tuple[tuple[str, int], ...]:
    """Ageing as gRPC has it (gRFC A9): after so long, give or take a tenth, clients are told to dial anew.

    Without `grpc.max_connection_age_grace_ms` calls and streams under way end in their own time.
    """
    if transport != "grpcio":
        return ()  # The socket behind the native front is not to age.
    seconds = CONNECTION_AGE_SECONDS if seconds is None else seconds
    return (("grpc.max_connection_age_ms", round(seconds * 1000)),) if seconds else ()


def _unary(behavior: Callable[[Any, Any], Awaitable[Any]], request: Any) -> grpc.RpcMethodHandler[Any, Any]:
    """One method: what it raises becomes a status, as on the request path."""

    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behavior(request, context)
        except ServingError as error:
            refusal = error
        except Exception as error:  # noqa: BLE001  whatever it is, its text stays here
            refusal = defect(behavior, error)
        return await context.abort(refusal.code, str(refusal))

    return grpc.unary_unary_rpc_method_handler(
        guarded,
        request_deserializer=request.FromString,
        response_serializer=lambda reply: reply.SerializeToString(),
    )


def _reflected() -> DescriptorPool:
    """A pool of everything that reflection describes: our own messages, health and reflection itself."""
    from grpc_reflection.v1alpha import reflection_pb2  # noqa: PLC0415  only where reflection is on

    pool = DescriptorPool()
    for descriptor in (oip.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(descriptor.serialized_pb)
    return pool
