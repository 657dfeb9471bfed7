"""The calls that are tried at several targets: how their requests and replies read."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError
from hedgerow_protos import open_inference_pb2 as pb
from hedgerow_protos.breaker import Breaker, State
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

from hedgerow import infer_result
from hedgerow.errors import InvalidReply
from hedgerow.hedging.target import Trailing
from hedgerow.infer_request import Headers
from hedgerow.infer_result import InferResult

ResultT = TypeVar("ResultT")

#: Model and version; "": any.
Asked = tuple[str, str]

_SERVICE = "/inference.GRPCInferenceService/"


@dataclass(frozen=True, slots=True)
class Method(Generic[ResultT]):
    """A unary method.

    Attributes:
        name: As the service has it.
        read: Makes a result of a reply, its trailing metadata, what was asked, and what brought it: the kind
            of attempt and the target. Raises InvalidReply.
    """

    name: str
    read: Callable[[bytes, Trailing, Asked, str, str], ResultT]


def _read_infer(reply: bytes, said: Trailing, asked: Asked, kind: str, target: str) -> InferResult:
    response = pb.ModelInferResponse()
    _parse(response, reply)
    model, version = asked
    if response.model_name not in (model, "") or not (response.model_name or response.outputs):
        raise InvalidReply(f"a reply of model {response.model_name!r} where {model!r} was asked")
    if version and response.model_version not in (version, ""):
        raise InvalidReply(f"a reply of version {response.model_version!r} where {version!r} was asked")
    return infer_result.read(response, said, kind=kind, target=target)


def _read_metadata(
    reply: bytes, said: Trailing, asked: Asked, kind: str, target: str
) -> pb.ModelMetadataResponse:
    del said, kind, target
    response = pb.ModelMetadataResponse()
    _parse(response, reply)
    if response.name != asked[0]:
        raise InvalidReply(f"the metadata of model {response.name!r} where {asked[0]!r}'s was asked")
    return response


def _parse(response: Any, reply: bytes) -> None:
    try:
        response.ParseFromString(reply)
    except DecodeError as error:
        raise InvalidReply(f"the reply is no {type(response).__name__}: {error}") from error


INFER = Method("ModelInfer", _read_infer)
METADATA = Method("ModelMetadata", _read_metadata)


class BytesStub(GRPCInferenceServiceStub):
    """The service's methods; those that are tried at several targets take and give bytes.

    So a request is encoded once for all its attempts, and what is no reply is noticed by whoever judges it.
    """

    def __init__(self, channel: Any, wrap: Callable[[Any], Any] = lambda method: method) -> None:
        super().__init__(channel)  # type: ignore[no-untyped-call]
        for method in (INFER.name, METADATA.name):
            setattr(self, method, wrap(channel.unary_unary(_SERVICE + method, _registered_method=True)))


#: Half of the trace ids that this process begins; the other half is each one's own.
_ORIGIN = f"{random.getrandbits(64) | 1:016x}"


def traced(sent: Headers) -> Headers:
    """The metadata of all attempts: one trace context, so that the targets' logs can be joined."""
    for name, _ in sent:
        if name == "traceparent":
            return sent
    own = f"{random.getrandbits(64) | 1:016x}"
    return (*sent, ("traceparent", f"00-{_ORIGIN}{own}-{own}-00"))


#: Statuses of a question after which a target counts as not ready; others say that it is at least there.
AWAY = frozenset((grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED))
#: Seconds for the question.
ASK_TIMEOUT = 2.0


def news_of(breaker: Breaker, down: set[str]) -> str:
    """What to log when a breaker has changed: once that its target is down, not at each probe."""
    if breaker.state is State.OPEN and breaker.name not in down:
        down.add(breaker.name)
        return f"{breaker.name} is asked only now and then: {breaker.reason}"
    if breaker.state is State.CLOSED:
        down.discard(breaker.name)
        return f"{breaker.name} answers again"
    return ""
