"""What the tests of the request path share: models from the zoo, requests, and a place for replies."""

from __future__ import annotations

import itertools
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import zoo
from google.protobuf import json_format
from hedgerow_protos.hedgerow_control_pb2 import Route, ServingSpec
from hedgerow_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from hedgerow_server.answer import Answerer
from hedgerow_server.call import Call, Metadata
from hedgerow_server.engine import loading
from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.loading import LoadedModel
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.runners import Engine
from hedgerow_server.gate.admission import Admission
from hedgerow_server.gate.concurrency import DEFAULT_BOUNDS, Bounds
from hedgerow_server.gate.deadlines import Deadlines
from hedgerow_server.routing.table import RouteTable
from hedgerow_server.telemetry.request_log import LogLine, RequestLog

#: Every run on the event loop, and none.
INLINE, THREADED = 1e9, 0.0

#: Protocol name of each NumPy type; objects are BYTES.
NAMES = {datatype.dtype: datatype.name for datatype in DATATYPES.values()}


@cache
def loaded(kind: str, max_batch_size: int = 0, **options: Any) -> LoadedModel:
    """The zoo's model `kind`, loaded once in a process; the file is gone afterwards."""
    spec = ServingSpec()
    spec.batching.max_batch_size = max_batch_size
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        getattr(zoo, kind)(path, **options)
        return loading.load(path.parent, path.name, spec)


def model(
    kind: str,
    name: str = "m",
    version: str = "1",
    *,
    max_batch_size: int = 0,
    nan: Mapping[str, str] | None = None,
    **options: Any,
) -> Model:
    """A version of the zoo's model `kind` in memory, with a queue and counts of its own."""
    serving = json_format.ParseDict({"nan": dict(nan or {})}, ServingSpec())
    made = Model(name, version, f"{kind}@{version}", loaded(kind, max_batch_size, **options), serving)
    # It stands for a large model, which has no loop: tests choose where it runs.
    made.loops = made.loops and kind != "slow"
    return made


@cache
def _endless_session() -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as directory:
        path = zoo.never_returns(Path(directory) / "model.onnx")
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def endless(name: str = "m", *, max_batch_size: int = 8) -> Model:
    """A model x FP32 [batch, 1] whose runs never return; no such model passes a warm-up."""
    made = model("slow", name, max_batch_size=max_batch_size, milliseconds=1)
    made._session = _endless_session()
    return made


def table(*models: Model, routes: Mapping[str, Sequence[Route]] | None = None) -> RouteTable:
    """A route table: each model's first version takes all traffic, unless `routes` says otherwise."""
    by_name: dict[str, dict[str, Model]] = {}
    for each in models:
        by_name.setdefault(each.name, {})[each.version] = each
    plain = {
        name: [Route(variant="champion", version=next(iter(versions)), weight=100)]
        for name, versions in by_name.items()
    }
    return RouteTable.build(1, by_name, {**plain, **(routes or {})})


# Requests and replies.


def framed(elements: Sequence[bytes]) -> bytes:
    """A raw BYTES tensor."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def raw(array: np.ndarray) -> bytes:
    """A tensor's raw contents."""
    if array.dtype.hasobject:
        return framed([e if isinstance(e, bytes) else e.encode() for e in array.ravel()])
    return array.tobytes()


def request(
    inputs: Mapping[str, Any],
    *,
    name: str = "m",
    version: str = "",
    id: str = "",  # noqa: A002  the protocol's name
    outputs: Sequence[str] = (),
    timeout: int = 0,
) -> ModelInferRequest:
    """A raw request of NumPy arrays (FP32 unless they are arrays already)."""
    made = ModelInferRequest(model_name=name, model_version=version, id=id)
    for input_name, given in inputs.items():
        array = given if isinstance(given, np.ndarray) else np.array(given, np.float32)
        made.inputs.add(name=input_name, datatype=NAMES[array.dtype], shape=array.shape)
        made.raw_input_contents.append(raw(array))
    for output in outputs:
        made.outputs.add(name=output)
    if timeout:
        made.parameters["timeout"].int64_param = timeout
    return made


def unframed(content: bytes) -> list[bytes]:
    """The elements of a raw BYTES tensor."""
    elements = []
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from("<I", content, at)
        elements.append(content[at + 4 : at + 4 + length])
        at += 4 + length
    assert at == len(content)
    return elements


def tensors(reply: ModelInferResponse) -> dict[str, np.ndarray]:
    """The outputs of a reply, every one of which must have raw contents."""
    assert len(reply.outputs) == len(reply.raw_output_contents)
    found = {}
    for output, content in zip(reply.outputs, reply.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            array = np.array(unframed(content), object)
        else:
            array = np.frombuffer(content, DATATYPES[output.datatype].dtype)
        found[output.name] = array.reshape(tuple(output.shape))
    return found


@dataclass(slots=True)
class Reply:
    """What a caller got."""

    code: grpc.StatusCode
    #: Of a failure.
    message: str = ""
    payload: bytes = b""
    trailing: dict[str, str | bytes] = field(default_factory=dict)

    @property
    def response(self) -> ModelInferResponse:
        """The answer; fails the test if it is none."""
        assert self.code is grpc.StatusCode.OK, f"{self.code}: {self.message}"
        return ModelInferResponse.FromString(self.payload)

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """The answer's outputs."""
        return tensors(self.response)


class Callers:
    """The sink of all calls: holds each one's reply, and fails the test at a second one."""

    def __init__(self) -> None:
        self.replies: dict[int, Reply] = {}
        self._numbers = itertools.count()

    def call(
        self,
        payload: ModelInferRequest | bytes,
        *,
        metadata: Metadata = (),
        remaining: float | None = None,
    ) -> Call:
        """A call as a transport would hand it over."""
        encoded = payload if isinstance(payload, bytes) else payload.SerializeToString()
        return Call(encoded, metadata, remaining, self, next(self._numbers), 1)

    def respond(self, call: Call, payload: bytes, trailing: list[tuple[str, str | bytes]]) -> None:
        """Takes an answer."""
        self._take(call, Reply(grpc.StatusCode.OK, "", bytes(payload), dict(trailing)))

    def fail(
        self, call: Call, code: grpc.StatusCode, message: str, trailing: list[tuple[str, str | bytes]]
    ) -> None:
        """Takes a failure."""
        assert code is not grpc.StatusCode.OK
        self._take(call, Reply(code, message, b"", dict(trailing)))

    def _take(self, call: Call, reply: Reply) -> None:
        assert call.token not in self.replies, f"{call!r} was answered twice"
        self.replies[call.token] = reply

    def of(self, call: Call) -> Reply:
        """The reply to a call."""
        return self.replies[call.token]


class KeptLog(RequestLog):
    """A request log that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[LogLine] = []

    @property
    def is_on(self) -> bool:
        """It is."""
        return True

    def record(self, *lines: LogLine) -> None:
        """Takes lines."""
        self.lines += lines


@dataclass(slots=True)
class RequestPath:
    """A request path of real parts: answerer, engine, models; started on the running loop."""

    answerer: Answerer
    engine: Engine
    log: KeptLog
    callers: Callers

    @classmethod
    async def open(
        cls,
        routes: RouteTable,
        *,
        inline_below: float = INLINE,
        runners: int = 2,
        instances: int | None = None,
        deadlines: Deadlines | None = None,
        max_message_bytes: int = 1 << 20,
        clock: Callable[[], float] | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
    ) -> RequestPath:
        """Starts one."""
        engine = Engine(runners=runners, instances=instances, inline_below=inline_below)
        log = KeptLog()
        options: dict[str, Any] = {} if clock is None else {"clock": clock}
        answerer = Answerer(
            engine,
            log,
            deadlines=deadlines or Deadlines(60, 60),
            max_message_bytes=max_message_bytes,
            admission=Admission(bounds),
            **options,
        )
        await engine.start(answerer.finish, answerer.expire)
        answerer.use(routes)
        return cls(answerer, engine, log, Callers())
