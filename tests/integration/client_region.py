"""A region that does as it is told: a real gRPC server that remembers who asked and who cancelled."""

# ruff: noqa: N802 - gRPC's method names

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
from hedgerow_protos import open_inference_pb2 as pb

OK = grpc.StatusCode.OK


@dataclass(frozen=True)
class Does:
    """What a region does with a request: after so many seconds it answers, or fails."""

    seconds: float = 0.0
    code: grpc.StatusCode = OK
    trailing: tuple[tuple[str, str], ...] = ()
    #: Sent in place of the reply.
    garbage: bytes | None = None


@dataclass(eq=False)
class Seen:
    """One request as it arrived, and how it went."""

    metadata: dict[str, str]
    request: bytes
    remaining: float
    at: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


class Region:
    """A server on a port of its own; `does` may be changed, or be a function of the n-th request."""

    def __init__(self, name: str, does: Does | Callable[[int], Does] = Does(), *, port: int = 0) -> None:
        self.name = name
        self.does = does
        self.ready = True
        self.seen: list[Seen] = []
        self.calls: Counter[str] = Counter()
        self.asked = threading.Event()
        self._lock = threading.Lock()
        self._server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(64), options=(("grpc.so_reuseport", 0),)
        )
        unary = grpc.unary_unary_rpc_method_handler
        handlers = {"ModelInfer": unary(self._infer)}  # bytes in, bytes out
        for method in ("ServerLive", "ServerReady", "ModelMetadata"):
            request, reply = getattr(pb, f"{method}Request"), getattr(pb, f"{method}Response")
            handlers[method] = unary(getattr(self, method), request.FromString, reply.SerializeToString)
        service = "inference.GRPCInferenceService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def stop(self) -> None:
        """Ends the server at once, and with it all calls."""
        for one in self.seen:
            one.ended.set()
        self._server.stop(0).wait()

    def ServerLive(self, request, context):
        self.calls["ServerLive"] += 1
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request, context):
        self.calls["ServerReady"] += 1
        return pb.ServerReadyResponse(ready=self.ready)

    def ModelMetadata(self, request, context):
        self.calls["ModelMetadata"] += 1
        reply = pb.ModelMetadataResponse(name=request.name, versions=["1"])
        reply.inputs.add(name="x", datatype="FP32", shape=[-1, 3])
        return reply

    def _infer(self, payload: bytes, context: grpc.ServicerContext) -> bytes:
        seen = Seen(dict(context.invocation_metadata()), payload, context.time_remaining())
        with self._lock:
            number = len(self.seen)
            self.seen.append(seen)
        self.asked.set()
        does = self.does(number) if callable(self.does) else self.does
        context.add_callback(seen.ended.set)
        if does.seconds and seen.ended.wait(does.seconds):
            seen.cancelled.set()
            return b""
        context.set_trailing_metadata((("hedgerow-region", self.name), *does.trailing))
        if does.code is not OK:
            context.abort(does.code, f"region {self.name} was told to")
        if does.garbage is not None:
            return does.garbage
        request = pb.ModelInferRequest.FromString(payload)
        reply = pb.ModelInferResponse(model_name=request.model_name, model_version="7", id=request.id)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            reply.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            reply.raw_output_contents.append(raw)
        return reply.SerializeToString()
