"""A server that runs, and how it is asked: what all load generators need to know of it."""

from __future__ import annotations

import asyncio
import http
import http.client
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import grpc
import numpy as np
import numpy.typing as npt
from hedgerow_protos import open_inference_pb2 as oip

Floats = npt.NDArray[np.float32]

METHOD = "/inference.GRPCInferenceService/ModelInfer"
GRPC_HEADERS = (("content-type", "application/grpc"), ("te", "trailers"))
#: What OIP's names for number types mean to NumPy.
DTYPES = {
    "BOOL": "bool",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}
_DATATYPES = {np.dtype(name): datatype for datatype, name in DTYPES.items()}
#: Rounding differs between batch sizes.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4


class WrongAnswer(Exception):
    """A server answered, but not what its model says."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One server under load.

    Attributes:
        name: Of the server, in reports.
        url: Where it is asked.
        headers: Of a request.
        body: Of a request: for gRPC the message behind its five bytes of prefix.
        http1: Asked over HTTP/1.1, one request at a time on a connection.
        reply_bytes: Size of a right answer's body; 0 until `checked`.
        metrics: Address of the metrics page of a Hedgerow server, HOST:PORT.
        pid: Of the server; 0 for one that was not started here.
    """

    name: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    http1: bool = False
    reply_bytes: int = 0
    metrics: str = ""
    pid: int = 0


def framed(message: bytes) -> bytes:
    """A gRPC message as it is on the wire: not compressed, its length, itself."""
    return struct.pack(">BI", 0, len(message)) + message


def question(model: str, inputs: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    """A framed ModelInferRequest with raw tensors of numbers."""
    request = oip.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=_DATATYPES[array.dtype], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return framed(request.SerializeToString())


def over_grpc(
    name: str,
    target: str,
    model: str,
    inputs: Mapping[str, npt.NDArray[np.generic]],
    *,
    metrics: str = "",
    pid: int = 0,
) -> Contender:
    """A server of the Open Inference Protocol."""
    return Contender(
        name,
        f"http://{target}{METHOD}",
        GRPC_HEADERS,
        question(model, inputs),
        metrics=metrics,
        pid=pid,
    )


async def checked(
    contender: Contender, expected: Floats | None, read: Callable[[bytes], Floats] | None = None
) -> Contender:
    """Asks once, holds the answer against the expected numbers, and notes its size.

    Args:
        contender: Who is asked.
        expected: The model's answer; None: any is right.
        read: The numbers of an answer's body; None for gRPC.

    Raises:
        WrongAnswer: There is no answer, or it has other numbers.
    """
    try:
        body = await asyncio.to_thread(_post if contender.http1 else _call, contender)
    except (OSError, http.client.HTTPException, grpc.RpcError) as error:
        raise WrongAnswer(f"{contender.name} does not answer: {_one_line(error)}") from None
    if expected is None:
        return replace(contender, reply_bytes=len(body))
    numbers = (read or _outputs)(body)
    if not (
        numbers.size == expected.size
        and np.allclose(numbers.reshape(-1), expected.reshape(-1), rtol=_RELATIVE, atol=_ABSOLUTE)
    ):
        raise WrongAnswer(
            f"{contender.name} answers {numbers.reshape(-1)[:4]}, not {expected.reshape(-1)[:4]}"
        )
    return replace(contender, reply_bytes=len(body))


def _call(contender: Contender) -> bytes:
    target, _, method = contender.url.removeprefix("http://").partition("/")
    sizes = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(target, options=sizes) as channel:
        call = channel.unary_unary(f"/{method}", lambda body: body, lambda body: body)
        return framed(call(contender.body[5:], timeout=10))


def _post(contender: Contender) -> bytes:
    url = urlsplit(contender.url)
    assert url.hostname is not None
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=10)
    try:
        connection.request("POST", url.path, contender.body, dict(contender.headers))
        reply = connection.getresponse()
        body = reply.read()
    finally:
        connection.close()
    if reply.status != http.HTTPStatus.OK:
        raise OSError(f"HTTP {reply.status} {body[:150].decode(errors='replace')}")
    return body


def _outputs(body: bytes) -> Floats:
    reply = oip.ModelInferResponse.FromString(body[5:])
    if reply.raw_output_contents:
        return np.frombuffer(reply.raw_output_contents[0], np.float32)
    return np.asarray(reply.outputs[0].contents.fp32_contents, np.float32)


def _one_line(error: Exception) -> str:
    text = error.details() if isinstance(error, grpc.Call) else str(error)
    return " ".join((text or repr(error)).split())[:200]
