"""Another region's reply: held against what this server knows, and marked as what it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from google.protobuf.message import DecodeError
from hedgerow_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse

from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.signature import Signature


class ForeignReply(Exception):
    """A reply that must not be given to the caller; the message says why, for the log."""


def ask_version(payload: bytes, version: str) -> bytes:
    """The same request, for one version.

    Args:
        payload: An encoded ModelInferRequest.
        version: The version to ask for.
    """
    request = ModelInferRequest.FromString(payload)
    request.model_version = version
    return request.SerializeToString()


def read(payload: bytes, *, model: str, version: str) -> ModelInferResponse:
    """Reads a reply of another region.

    Args:
        payload: As it came.
        model: The model asked for.
        version: The version that it must be from; empty: any.

    Raises:
        ForeignReply: It is no reply, of another model or version, or its tensors and their bytes disagree.
    """
    try:
        reply = ModelInferResponse.FromString(payload)
    except DecodeError:
        raise ForeignReply("it is no ModelInferResponse") from None
    if reply.model_name != model:
        raise ForeignReply(f"it is of model {reply.model_name[:64]!r}, asked was {model!r}")
    if version and reply.model_version != version:
        raise ForeignReply(f"it is of version {reply.model_version[:64]!r}, asked was {version!r}")
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
        if datatype.itemsize and len(raw) != math.prod(tensor.shape) * datatype.itemsize:
            raise ForeignReply(
                f"output {tensor.name[:64]!r} has {len(raw)} bytes for {list(tensor.shape)[:8]}"
            )
    return reply


def check_outputs(
    reply: ModelInferResponse, signature: Signature, asked: Sequence[int] | None, rows: int
) -> None:
    """Holds a reply against the signature of the version that was chosen here.

    Args:
        reply: As `read` returns it.
        signature: Of a version of the same model.
        asked: Positions of the outputs that the caller wants; None: all.
        rows: Of the request; 0 if they are not known yet.

    Raises:
        ForeignReply: An output is missing, of another type, or has another number of rows.
    """
    found = {tensor.name: tensor for tensor in reply.outputs}
    specs = signature.outputs if asked is None else [signature.outputs[position] for position in asked]
    for spec in specs:
        tensor = found.get(spec.name)
        if tensor is None or tensor.datatype != spec.datatype.name or len(tensor.shape) != len(spec.shape):
            raise ForeignReply(f"it has no output {spec.name!r} of type {spec.datatype.name}")
        if signature.max_batch_size and rows and tensor.shape and tensor.shape[0] != rows:
            raise ForeignReply(f"output {spec.name!r} has {tensor.shape[0]} rows for {rows}")


def mark(reply: ModelInferResponse, said: Mapping[str, str]) -> bytes:
    """Encodes a reply with more parameters."""
    for name, value in said.items():
        reply.parameters[name].string_param = value
    return reply.SerializeToString()
