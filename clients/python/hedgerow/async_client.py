"""The asyncio client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import numpy.typing as npt
from hedgerow_protos import open_inference_pb2 as pb
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

from hedgerow import infer_result
from hedgerow.client import DEFAULT_TARGET, DEFAULT_TIMEOUT
from hedgerow.connection import DatatypeCache, Settings, Tls, addresses
from hedgerow.descriptions import IndexEntry, ModelMetadata, ServerMetadata, VersionStatistics
from hedgerow.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    HedgerowError,
    InvalidRequest,
    NotFound,
    Unavailable,
    from_rpc,
)
from hedgerow.hedging import DEFAULT, Hedging
from hedgerow.hedging.aio import AsyncHedger
from hedgerow.hedging.method import INFER, METADATA, Asked, BytesStub, Method, ResultT
from hedgerow.infer_request import Headers, InferRequest, Parameter, columns, headers
from hedgerow.infer_result import InferResult, read_stream
from hedgerow.lanes import Lane, Lanes, Trailing


class AsyncClient:
    """Asks models on a server that speaks the Open Inference Protocol v2, without blocking the loop.

    Connects at the first call and belongs to the event loop that makes it.
    Cancelling a task cancels its call on the server too.

    Args:
        target: `host:port`, or several as gRPC writes them, `ipv4:10.0.0.1:8011,10.0.0.1:8012`, which
            then take turns.
        timeout: Seconds for each call that does not say otherwise.
        channels: Connections to begin with. A server with several workers spreads connections, not
            calls, so the client opens more, up to 16, until it has one to each worker.
        max_message_bytes: Largest request and reply.
        keepalive: Seconds of silence after which a connection with calls on it is tested; 0: never.
        retries: Further attempts, within the timeout, when a server is unreachable or draining.
        tls: None for plaintext.
        metadata: Sent with every call, such as `{"authorization": "Bearer …"}`.
        backups: Addresses of backup regions, in order. `infer` and `predict` go there when the primary
            fails, is slow, or is down; all else is asked of the primary alone.
        hedge: When a second attempt begins at a backup while the first is still under way; None: only
            when that fails.

    Raises:
        InvalidRequest: A setting is out of range.
        OSError: A file named in `tls` cannot be read.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        channels: int = 2,
        max_message_bytes: int = 16 << 20,
        keepalive: float = 30.0,
        retries: int = 2,
        tls: Tls | None = None,
        metadata: Mapping[str, str] | None = None,
        backups: Sequence[str] = (),
        hedge: Hedging | None = DEFAULT,
    ) -> None:
        self._settings = Settings(
            target,
            timeout,
            channels,
            max_message_bytes,
            keepalive,
            retries,
            tls,
            headers(metadata),
            addresses(backups),
            hedge,
        )
        self._credentials = tls.credentials() if tls else None
        self._datatypes = DatatypeCache()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Connections to each target, the primary's first; none before the first call.
        self._lanes_to: tuple[Lanes[grpc.aio.Channel], ...] = ()
        self._hedger: AsyncHedger | None = None
        #: Channels given up, while they close.
        self._closing: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        calls = sum(lanes.outstanding for lanes in self._lanes_to)
        state = "closed" if self._closed else f"{calls} calls"
        return f"<hedgerow.AsyncClient {self._settings.target} {state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections; calls under way end with `Cancelled`. Harmless a second time."""
        self._closed = True
        if self._hedger is not None:
            await self._hedger.close()
        for lanes in self._lanes_to:
            for lane in lanes.open:
                await lane.channel.close()
        await asyncio.gather(*self._closing)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        outputs: Sequence[str] | None = None,
        version: str | int = "",
        timeout: float | None = None,  # noqa: ASYNC109 - it is the call's deadline, which the server sees
        request_id: str | None = None,
        route_key: str | None = None,
        priority: int | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> InferResult:
        """Asks a model; arguments, result and errors are those of `Client.infer`."""
        request = InferRequest(model, inputs, outputs, version, request_id or "", priority, parameters or {})
        sent = self._headers(metadata, route_key)
        seconds = self._settings.timeout if timeout is None else timeout
        if not request.untyped():
            return await self._infer(request.message({}), seconds, sent)
        deadline = time.monotonic() + seconds
        known = self._datatypes.get(model, str(version))
        if known is not None:
            try:
                return await self._infer(request.message(known), seconds, sent)
            except InvalidRequest:
                # A newer version may take other dtypes than when we asked.
                if await self._ask_datatypes(model, version, deadline - time.monotonic()) == known:
                    raise
        datatypes = self._datatypes.get(model, str(version))
        if datatypes is None:
            datatypes = await self._ask_datatypes(model, version, deadline - time.monotonic())
        return await self._infer(request.message(datatypes), deadline - time.monotonic(), sent)

    async def predict(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        version: str | int = "",
        timeout: float | None = None,  # noqa: ASYNC109 - it is the call's deadline, which the server sees
        route_key: str | None = None,
    ) -> InferResult:
        """Asks a model about rows; arguments, result and errors are those of `Client.predict`."""
        return await self.infer(model, columns(inputs), version=version, timeout=timeout, route_key=route_key)

    async def stream(
        self,
        requests: Iterable[InferRequest] | AsyncIterable[InferRequest],
        *,
        return_errors: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it is the call's deadline, which the server sees
        route_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncIterator[InferResult | HedgerowError]:
        """Sends requests on one stream and yields the replies as they come.

        To leave early, wrap it in `contextlib.aclosing`, which ends the call at once.

        Args:
            requests: Read by a task of its own, as fast as the stream takes them.
            return_errors: A failed request is yielded as a HedgerowError and the stream goes on;
                otherwise it is raised, which ends the stream.
            timeout: Seconds for the whole stream; None for no limit.
            route_key: As for `Client.infer`.
            metadata: As for `Client.infer`.

        Raises:
            HedgerowError: The stream, or without `return_errors` one of its requests, failed.
        """
        sent = self._headers(metadata, route_key)
        failed: list[Exception] = []

        async def messages() -> AsyncIterator[pb.ModelInferRequest]:
            try:
                async for request in _iterate(requests):
                    yield await self._message(request)
            except Exception as error:  # noqa: BLE001 - gRPC would log it and report only CANCELLED
                failed.append(error)
                call.cancel()

        lanes, lane = self._acquire()
        call = lane.stub.ModelStreamInfer(messages(), timeout=timeout, metadata=sent)
        try:
            async for response in call:
                reply = read_stream(response)
                if isinstance(reply, HedgerowError) and not return_errors:
                    raise reply
                yield reply
        except grpc.RpcError as error:
            raise from_rpc(error, self._settings.target) from error
        except asyncio.CancelledError:
            if failed:
                raise failed[0] from None
            self._raise_if_closed()
            raise
        finally:
            call.cancel()
            lanes.release(lane)

    async def live(self, *, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Whether the server's process answers; False also when it cannot be reached."""
        return await self._yes("ServerLive", pb.ServerLiveRequest(), "live", timeout)

    async def ready(self, *, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Whether the server is ready for requests; False also when it cannot be reached."""
        return await self._yes("ServerReady", pb.ServerReadyRequest(), "ready", timeout)

    async def model_ready(
        self,
        model: str,
        version: str | int = "",
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> bool:
        """Whether a model (or one version of it) answers; False also when it is not known."""
        request = pb.ModelReadyRequest(name=model, version=str(version))
        return await self._yes("ModelReady", request, "ready", timeout)

    async def server_metadata(self, *, timeout: float | None = None) -> ServerMetadata:  # noqa: ASYNC109
        """The server's name, release and extensions."""
        request = pb.ServerMetadataRequest()
        return ServerMetadata.read((await self._call("ServerMetadata", request, timeout))[0])

    async def metadata(
        self,
        model: str,
        version: str | int = "",
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> ModelMetadata:
        """What a model takes and gives."""
        request = pb.ModelMetadataRequest(name=model, version=str(version))
        if self._settings.backups:
            return ModelMetadata.read(await self._ask(METADATA, (model, str(version)), request, timeout))
        return ModelMetadata.read((await self._call("ModelMetadata", request, timeout))[0])

    async def config(
        self,
        model: str,
        version: str | int = "",
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> pb.ModelConfig:
        """The model's configuration in Triton's message."""
        request = pb.ModelConfigRequest(name=model, version=str(version))
        config: pb.ModelConfig = (await self._call("ModelConfig", request, timeout))[0].config
        return config

    async def statistics(
        self,
        model: str = "",
        version: str | int = "",
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> tuple[VersionStatistics, ...]:
        """What each version has done since the server started; all models if none is named."""
        request = pb.ModelStatisticsRequest(name=model, version=str(version))
        return VersionStatistics.read((await self._call("ModelStatistics", request, timeout))[0])

    async def index(
        self,
        *,
        ready: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> tuple[IndexEntry, ...]:
        """Every version the server knows, or only those that are ready."""
        request = pb.RepositoryIndexRequest(ready=ready)
        return IndexEntry.read((await self._call("RepositoryIndex", request, timeout))[0])

    def _headers(self, metadata: Mapping[str, str] | None, route_key: str | None) -> Headers:
        if metadata is None and route_key is None:
            return self._settings.headers
        return self._settings.headers + headers(metadata, route_key)

    async def _message(self, request: InferRequest) -> pb.ModelInferRequest:
        datatypes: dict[str, str] = {}
        if request.untyped():
            known = self._datatypes.get(request.model, str(request.version))
            datatypes = known or await self._ask_datatypes(
                request.model, request.version, self._settings.timeout
            )
        return request.message(datatypes)

    async def _ask_datatypes(self, model: str, version: str | int, seconds: float) -> dict[str, str]:
        datatypes = (await self.metadata(model, version, timeout=seconds)).input_datatypes()
        self._datatypes.put(model, str(version), datatypes)
        return datatypes

    async def _infer(self, message: pb.ModelInferRequest, seconds: float, sent: Headers) -> InferResult:
        if self._settings.backups:
            return await self._ask(INFER, (message.model_name, message.model_version), message, seconds, sent)
        return infer_result.read(*await self._call("ModelInfer", message, seconds, sent))

    async def _yes(self, method: str, request: object, field: str, seconds: float | None) -> bool:
        try:
            return bool(getattr((await self._call(method, request, seconds))[0], field))
        except (Unavailable, DeadlineExceeded, NotFound):
            return False

    async def _ask(
        self,
        method: Method[ResultT],
        asked: Asked,
        request: Any,
        seconds: float | None,
        sent: Headers | None = None,
    ) -> ResultT:
        self._connect_once()
        assert self._hedger is not None
        settings = self._settings
        return await self._hedger.call(
            method,
            asked,
            request.SerializeToString(),
            settings.timeout if seconds is None else seconds,
            settings.headers if sent is None else sent,
        )

    def _acquire(self) -> tuple[Lanes[grpc.aio.Channel], Lane[grpc.aio.Channel]]:
        self._connect_once()
        lanes = self._lanes_to[0]
        return lanes, lanes.acquire()

    def _connect_once(self) -> None:
        if self._closed:
            raise FailedPrecondition(f"{self!r}: make another client")
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None:
            raise FailedPrecondition(f"{self!r} belongs to another event loop: make one client for each loop")
        self._loop = loop
        settings = self._settings
        stub = BytesStub if settings.backups else GRPCInferenceServiceStub
        self._lanes_to = tuple(
            Lanes(partial(self._connect, target), self._give_up, settings.channels, stub=stub)
            for target in settings.targets
        )
        if settings.backups:
            self._hedger = AsyncHedger(
                settings.targets,
                self._lanes_to,
                hedge=settings.hedge,
                retries=settings.retries,
                headers=settings.headers,
                loop=loop,
            )

    def _connect(self, target: str) -> grpc.aio.Channel:
        chosen = self._settings.options(target)
        if self._credentials:
            return grpc.aio.secure_channel(target, self._credentials, chosen)
        return grpc.aio.insecure_channel(target, chosen)

    def _give_up(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.ensure_future(channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _raise_if_closed(self) -> None:
        # Closing a channel cancels its calls, which looks as if the awaiting task were cancelled.
        task = asyncio.current_task()
        if self._closed and task is not None and not task.cancelling():
            raise Cancelled(f"{self!r} while the call was under way")

    async def _call(
        self, method: str, request: object, seconds: float | None, sent: Headers | None = None
    ) -> tuple[Any, Trailing]:
        lanes, lane = self._acquire()
        trailing: Trailing = {}
        try:
            call = getattr(lane.stub, method)(
                request,
                timeout=self._settings.timeout if seconds is None else seconds,
                metadata=self._settings.headers if sent is None else sent,
            )
            response = await call
            trailing = dict(await call.trailing_metadata() or ())
        except grpc.RpcError as error:
            raise from_rpc(error, self._settings.target) from error
        except asyncio.CancelledError:
            self._raise_if_closed()
            raise
        finally:
            lanes.release(lane, trailing)
        return response, trailing


async def _iterate(
    requests: Iterable[InferRequest] | AsyncIterable[InferRequest],
) -> AsyncIterator[InferRequest]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
