"""Another region's reply: held against what this server knows, and marked as what it is."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

from google.protobuf.message import DecodeError
from hedgerow_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse

from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.signature import Signature

_LENGTH = struct.Struct("<I")


class ForeignReply(Exception):
    """A reply that must not be given to the caller; the message says why, for the log."""


def ask_version(payload: bytes, version: str) -> bytes:
    """The same request, for one version.

    Args:
        payload: An encoded ModelInferRequest.
        version: The version to ask for.
    """
    # Messages one behind the other are merged, and the last of a field counts. Parsing and encoding 16 MB
    # anew would stop the event loop for longer than copying them.
    return payload + ModelInferRequest(model_version=version).SerializeToString()


def read(payload: bytes, *, model: str, version: str, request_id: str = "") -> ModelInferResponse:
    """Reads a reply of another region.

    Args:
        payload: As it came.
        model: The model asked for.
        version: The version that it must be from; empty: any.
        request_id: The request's own id, which it must give back; empty: the request has none.

    Raises:
        ForeignReply: It is no reply, of another request, model or version, or its tensors and their bytes
            disagree.
    """
    try:
        reply = ModelInferResponse.FromString(payload)
    except DecodeError:
        raise ForeignReply("it is no ModelInferResponse") from None
    if reply.model_name != model:
        raise ForeignReply(f"it is of model {reply.model_name[:64]!r}, asked was {model!r}")
    if version and reply.model_version != version:
        raise ForeignReply(f"it is of version {reply.model_version[:64]!r}, asked was {version!r}")
    if request_id and reply.id != request_id:
        # Clients of streams find their request by it.
        raise ForeignReply(f"it has the id {reply.id[:64]!r}, the request {request_id[:64]!r}")
    if not reply.outputs or len(reply.outputs) != len(reply.raw_output_contents):
        raise ForeignReply(
            f"it has {len(reply.outputs)} outputs and {len(reply.raw_output_contents)} raw contents"
        )
    for tensor, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
        datatype = DATATYPES.get(tensor.datatype)
        if datatype is None or min(tensor.shape, default=0) < 0:
            raise ForeignReply(
                f"output {tensor.name[:64]!r} is {tensor.datatype[:16]!r} {list(tensor.shape)[:8]}"
            )
        elements = math.prod(tensor.shape)
        if len(raw) != elements * datatype.itemsize if datatype.itemsize else not _holds(raw, elements):
            raise ForeignReply(
                f"output {tensor.name[:64]!r} has {len(raw)} bytes for {list(tensor.shape)[:8]}"
            )
        if tensor.HasField("contents"):
            raise ForeignReply(f"output {tensor.name[:64]!r} has contents of two kinds")
    return reply


def _holds(raw: bytes, elements: int) -> bool:
    """Whether a BYTES tensor's bytes are so many elements, each with its length before it.

    Triton's clients read them unchecked.
    """
    at, end = 0, len(raw)
    if elements * _LENGTH.size > end:
        return False
    for _ in range(elements):
        if at + _LENGTH.size > end:
            return False
        at += _LENGTH.size + _LENGTH.unpack_from(raw, at)[0]
    return at == end


def check_outputs(
    reply: ModelInferResponse, signature: Signature, asked: Sequence[int] | None, rows: int
) -> None:
    """Holds a reply against the signature of the version that was chosen here.

    Args:
        reply: As `read` returns it.
        signature: Of a version of the same model.
        asked: Positions of the outputs that the caller wants, in that order; None: all.
        rows: Of the request; 0 if they are not known yet.

    Raises:
        ForeignReply: An output is missing, there twice, not asked for, of another type or shape, or has
            another number of rows.
    """
    names = [tensor.name for tensor in reply.outputs]
    if len(set(names)) < len(names):
        raise ForeignReply("it has an output twice")
    if asked is not None and names != [signature.outputs[position].name for position in asked]:
        # Some clients take them by their place.
        raise ForeignReply(f"it has the outputs {names[:8]}, asked were others")
    found = {tensor.name: tensor for tensor in reply.outputs}
    for spec in signature.outputs if asked is None else [signature.outputs[position] for position in asked]:
        tensor = found.get(spec.name)
        if tensor is None or tensor.datatype != spec.datatype.name:
            raise ForeignReply(f"it has no output {spec.name!r} of type {spec.datatype.name}")
        if len(tensor.shape) != len(spec.shape) or any(
            want >= 0 and size != want for size, want in zip(tensor.shape, spec.shape, strict=True)
        ):
            raise ForeignReply(
                f"output {spec.name!r} has shape {list(tensor.shape)[:8]}, here it is {list(spec.shape)}"
            )
        if signature.max_batch_size and rows and tensor.shape[0] != rows:
            raise ForeignReply(f"output {spec.name!r} has {tensor.shape[0]} rows for {rows}")


def mark(reply: ModelInferResponse, said: Mapping[str, str]) -> bytes:
    """Encodes a reply with more parameters."""
    for name, value in said.items():
        reply.parameters[name].string_param = value
    return reply.SerializeToString()
