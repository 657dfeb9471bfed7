"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import numpy.typing as npt
from hedgerow_protos import open_inference_pb2 as pb
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

from hedgerow import infer_result
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
from hedgerow.hedging.blocking import Hedger, direct_stub
from hedgerow.hedging.method import INFER, METADATA, Asked, Method, ResultT
from hedgerow.infer_request import Headers, InferRequest, Parameter, columns, headers
from hedgerow.infer_result import InferResult, read_stream
from hedgerow.lanes import Lanes, Trailing

DEFAULT_TARGET = "127.0.0.1:8001"
DEFAULT_TIMEOUT = 10.0


class Client:
    """Asks models on a server that speaks the Open Inference Protocol v2. Threads may share it.

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
        self._settings = settings = Settings(
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
        self._datatypes = DatatypeCache()
        self._closed = False
        credentials = tls.credentials() if tls else None
        self._lanes_to = tuple(self._open_lanes(name, credentials) for name in settings.targets)
        self._lanes = self._lanes_to[0]
        self._hedger: Hedger | None = None
        if settings.backups:
            self._hedger = Hedger(
                settings.targets, self._lanes_to, hedge=hedge, retries=retries, headers=settings.headers
            )

    def __repr__(self) -> str:
        calls = sum(lanes.outstanding for lanes in self._lanes_to)
        state = "closed" if self._closed else f"{calls} calls"
        return f"<hedgerow.Client {self._settings.target} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections; calls under way end with `Cancelled`. Harmless a second time."""
        self._closed = True
        if self._hedger is not None:
            self._hedger.close()
        for lanes in self._lanes_to:
            for lane in lanes.open:
                lane.channel.close()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        outputs: Sequence[str] | None = None,
        version: str | int = "",
        timeout: float | None = None,
        request_id: str | None = None,
        route_key: str | None = None,
        priority: int | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> InferResult:
        """Asks a model.

        Args:
            model: The model's registered name.
            inputs: Arrays by input name, shapes as the model's metadata gives them. A NumPy array
                is sent in its own dtype; object and string arrays as BYTES. Lists and numbers have
                no dtype, so they are converted to what the model takes; the client asks the server
                for that once per model.
            outputs: The outputs wanted; None for all.
            version: A version number; "" lets the server choose.
            timeout: Seconds, instead of the client's.
            request_id: Comes back as the result's `request_id`.
            route_key: Who the caller is: equal keys stay with one variant while weights move.
            priority: 1 is the highest; None is the server's default.
            parameters: Further request parameters of the protocol.
            metadata: Further gRPC metadata, such as `traceparent`.

        Raises:
            InvalidRequest: Names, shapes or dtypes do not fit.
            NotFound: No such model, version or output.
            HedgerowError: Anything else; `hedgerow.errors` shows the tree.
        """
        request = InferRequest(model, inputs, outputs, version, request_id or "", priority, parameters or {})
        sent = self._headers(metadata, route_key)
        seconds = self._settings.timeout if timeout is None else timeout
        if not request.untyped():
            return self._infer(request.message({}), seconds, sent)
        deadline = time.monotonic() + seconds
        known = self._datatypes.get(model, str(version))
        if known is not None:
            try:
                return self._infer(request.message(known), seconds, sent)
            except InvalidRequest:
                # A newer version may take other dtypes than when we asked.
                if self._ask_datatypes(model, version, deadline - time.monotonic()) == known:
                    raise
        datatypes = self._datatypes.get(model, str(version))
        if datatypes is None:
            datatypes = self._ask_datatypes(model, version, deadline - time.monotonic())
        return self._infer(request.message(datatypes), deadline - time.monotonic(), sent)

    def predict(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        version: str | int = "",
        timeout: float | None = None,
        route_key: str | None = None,
    ) -> InferResult:
        """Asks a model about rows; where its inputs are bound to features, by the entities' ids.

        Args:
            model: The model's registered name.
            inputs: By name a list with a value for each row, or a value for a single row, in plain
                Python: `{"tailnum": ["N14228", "N24211"], "hour": [5, 6]}`. They are converted to what
                the model takes, which the client asks the server once.
            version: As for `infer`.
            timeout: As for `infer`.
            route_key: As for `infer`.

        Returns:
            The outputs, a row for each row; `.features` tells how good the joined features were:
            fresh, stale or default.

        Raises:
            InvalidRequest: Columns differ in length, or names, types or ids do not fit.
            HedgerowError: As for `infer`.
        """
        return self.infer(model, columns(inputs), version=version, timeout=timeout, route_key=route_key)

    def stream(
        self,
        requests: Iterable[InferRequest],
        *,
        return_errors: bool = False,
        timeout: float | None = None,
        route_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Iterator[InferResult | HedgerowError]:
        """Sends requests on one stream and yields the replies as they come.

        Args:
            requests: Read by another thread, as fast as the stream takes them.
            return_errors: A failed request is yielded as a HedgerowError and the stream goes on;
                otherwise it is raised, which ends the stream.
            timeout: Seconds for the whole stream; None for no limit.
            route_key: As for `infer`.
            metadata: As for `infer`.

        Raises:
            HedgerowError: The stream, or without `return_errors` one of its requests, failed.
        """
        sent = self._headers(metadata, route_key)
        failed: list[BaseException] = []

        def messages() -> Iterator[pb.ModelInferRequest]:
            try:
                for request in requests:
                    yield self._message(request)
            except BaseException as error:  # noqa: BLE001 - gRPC would log it and report only CANCELLED
                failed.append(error)
                call.cancel()

        lane = self._acquire()
        call = lane.stub.ModelStreamInfer(messages(), timeout=timeout, metadata=sent)
        try:
            for response in call:
                reply = read_stream(response)
                if isinstance(reply, HedgerowError) and not return_errors:
                    raise reply
                yield reply
        except grpc.RpcError as error:
            if failed:
                raise failed[0] from None
            raise from_rpc(error, self._settings.target) from error
        finally:
            call.cancel()
            self._lanes.release(lane)

    def live(self, *, timeout: float | None = None) -> bool:
        """Whether the server's process answers; False also when it cannot be reached."""
        return self._yes("ServerLive", pb.ServerLiveRequest(), "live", timeout)

    def ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server is ready for requests; False also when it cannot be reached."""
        return self._yes("ServerReady", pb.ServerReadyRequest(), "ready", timeout)

    def model_ready(self, model: str, version: str | int = "", *, timeout: float | None = None) -> bool:
        """Whether a model (or one version of it) answers; False also when it is not known."""
        request = pb.ModelReadyRequest(name=model, version=str(version))
        return self._yes("ModelReady", request, "ready", timeout)

    def server_metadata(self, *, timeout: float | None = None) -> ServerMetadata:
        """The server's name, release and extensions."""
        return ServerMetadata.read(self._call("ServerMetadata", pb.ServerMetadataRequest(), timeout)[0])

    def metadata(self, model: str, version: str | int = "", *, timeout: float | None = None) -> ModelMetadata:
        """What a model takes and gives."""
        request = pb.ModelMetadataRequest(name=model, version=str(version))
        if self._hedger is not None:
            return ModelMetadata.read(
                self._ask(self._hedger, METADATA, (model, str(version)), request, timeout)
            )
        return ModelMetadata.read(self._call("ModelMetadata", request, timeout)[0])

    def config(self, model: str, version: str | int = "", *, timeout: float | None = None) -> pb.ModelConfig:
        """The model's configuration in Triton's message."""
        request = pb.ModelConfigRequest(name=model, version=str(version))
        config: pb.ModelConfig = self._call("ModelConfig", request, timeout)[0].config
        return config

    def statistics(
        self, model: str = "", version: str | int = "", *, timeout: float | None = None
    ) -> tuple[VersionStatistics, ...]:
        """What each version has done since the server started; all models if none is named."""
        request = pb.ModelStatisticsRequest(name=model, version=str(version))
        return VersionStatistics.read(self._call("ModelStatistics", request, timeout)[0])

    def index(self, *, ready: bool = False, timeout: float | None = None) -> tuple[IndexEntry, ...]:
        """Every version the server knows, or only those that are ready."""
        request = pb.RepositoryIndexRequest(ready=ready)
        return IndexEntry.read(self._call("RepositoryIndex", request, timeout)[0])

    def _headers(self, metadata: Mapping[str, str] | None, route_key: str | None) -> Headers:
        if metadata is None and route_key is None:
            return self._settings.headers
        return self._settings.headers + headers(metadata, route_key)

    def _message(self, request: InferRequest) -> pb.ModelInferRequest:
        datatypes: dict[str, str] = {}
        if request.untyped():
            known = self._datatypes.get(request.model, str(request.version))
            datatypes = known or self._ask_datatypes(request.model, request.version, self._settings.timeout)
        return request.message(datatypes)

    def _ask_datatypes(self, model: str, version: str | int, seconds: float) -> dict[str, str]:
        datatypes = self.metadata(model, version, timeout=seconds).input_datatypes()
        self._datatypes.put(model, str(version), datatypes)
        return datatypes

    def _infer(self, message: pb.ModelInferRequest, seconds: float, sent: Headers) -> InferResult:
        if self._hedger is not None:
            return self._ask(
                self._hedger, INFER, (message.model_name, message.model_version), message, seconds, sent
            )
        return infer_result.read(*self._call("ModelInfer", message, seconds, sent))

    def _yes(self, method: str, request: object, field: str, timeout: float | None) -> bool:
        try:
            return bool(getattr(self._call(method, request, timeout)[0], field))
        except (Unavailable, DeadlineExceeded, NotFound):
            return False

    def _open_lanes(self, target: str, credentials: grpc.ChannelCredentials | None) -> Lanes[grpc.Channel]:
        chosen = self._settings.options(target)
        return Lanes(
            lambda: (
                grpc.secure_channel(target, credentials, chosen)
                if credentials
                else grpc.insecure_channel(target, chosen)
            ),
            lambda channel: channel.close(),
            self._settings.channels,
            stub=direct_stub if self._settings.backups else GRPCInferenceServiceStub,
        )

    def _acquire(self) -> Any:
        self._check_open()
        return self._lanes.acquire()

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPrecondition(f"{self!r}: make another client")

    def _ask(
        self,
        hedger: Hedger,
        method: Method[ResultT],
        asked: Asked,
        request: Any,
        timeout: float | None,
        sent: Headers | None = None,
    ) -> ResultT:
        self._check_open()
        settings = self._settings
        return hedger.call(
            method,
            asked,
            request.SerializeToString(),
            settings.timeout if timeout is None else timeout,
            settings.headers if sent is None else sent,
        )

    def _call(
        self, method: str, request: object, timeout: float | None, sent: Headers | None = None
    ) -> tuple[Any, Trailing]:
        lane = self._acquire()
        trailing: Trailing = {}
        try:
            response, call = getattr(lane.stub, method).with_call(
                request,
                timeout=self._settings.timeout if timeout is None else timeout,
                metadata=self._settings.headers if sent is None else sent,
            )
            trailing = dict(call.trailing_metadata() or ())
        except grpc.RpcError as error:
            raise from_rpc(error, self._settings.target) from error
        except ValueError as error:
            if not self._closed:
                raise
            raise Cancelled(f"{self!r} while a call began") from error
        finally:
            self._lanes.release(lane, trailing)
        return response, trailing
