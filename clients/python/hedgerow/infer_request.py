"""A question to a model: what the caller says, as the message and headers of one call."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from hedgerow_protos import open_inference_pb2 as pb

from hedgerow.errors import InvalidRequest
from hedgerow.tensors import Array, convert, encode

#: A parameter of a request or reply.
Parameter = bool | int | float | str
Headers = tuple[tuple[str, str], ...]

# What HTTP/2 and gRPC allow; the `grpc-` prefix is the library's own.
_HEADER = re.compile(r"(?!grpc-)[0-9a-z_.-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One request of a stream.

    Attributes:
        model: The model's registered name.
        inputs: Arrays by input name. A NumPy array is sent in its own dtype.
        outputs: The outputs wanted; None for all.
        version: A version number; "" lets the server choose.
        request_id: Comes back with the reply, which is how replies are told apart.
        priority: 1 is the highest; None is the server's default.
        parameters: Further request parameters of the protocol.
    """

    model: str
    inputs: Mapping[str, npt.ArrayLike]
    outputs: Sequence[str] | None = None
    version: str | int = ""
    request_id: str = ""
    priority: int | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def untyped(self) -> list[str]:
        """Names of the inputs that have no dtype of their own: lists and plain numbers."""
        return [name for name, value in self.inputs.items() if not _typed(value)]

    def message(self, datatypes: Mapping[str, str]) -> pb.ModelInferRequest:
        """The request as it goes over the wire, all contents raw.

        Args:
            datatypes: What the model takes, for the inputs that `untyped` names.

        Raises:
            InvalidRequest: Something cannot be said in the protocol.
        """
        try:
            message = pb.ModelInferRequest(
                model_name=self.model, model_version=str(self.version), id=self.request_id
            )
            for name in self.outputs or ():
                message.outputs.add(name=name)
            for name, value in self.inputs.items():
                array = _array(value) if _typed(value) else convert(name, value, datatypes.get(name))
                datatype, raw = encode(name, array)
                message.inputs.add(name=name, datatype=datatype, shape=array.shape)
                message.raw_input_contents.append(raw)
            if self.priority is not None:
                message.parameters["priority"].uint64_param = self.priority
            for key, parameter in self.parameters.items():
                _set(message.parameters[key], parameter)
        except (TypeError, ValueError) as error:  # protobuf's words for a field of the wrong type or range
            raise InvalidRequest(f"the request cannot be encoded: {error}") from error
        return message


def columns(inputs: Mapping[str, npt.ArrayLike]) -> dict[str, npt.ArrayLike]:
    """Columns of equal length; a value by itself is a column of one.

    Args:
        inputs: By name: one value for each row, a list of them where a column is wide, or a single value.

    Raises:
        InvalidRequest: There are none, or they differ in length.
    """
    if not inputs:
        raise InvalidRequest("no columns to predict for; give at least one")
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, np.ndarray | np.generic):
            found[name] = np.atleast_1d(value)
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            found[name] = value
        else:
            found[name] = [value]
    lengths = {name: len(column) for name, column in found.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise InvalidRequest(f"columns of different lengths: {told}; give each a value for each row")
    return found


def _typed(value: object) -> bool:
    return isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__")


def _array(value: npt.ArrayLike) -> Array:
    return value if isinstance(value, np.ndarray) else np.asarray(value)


def _set(target: pb.InferParameter, value: Parameter) -> None:
    if isinstance(value, bool):
        target.bool_param = value
    elif isinstance(value, int):
        target.int64_param = value
    elif isinstance(value, float):
        target.double_param = value
    else:
        target.string_param = value


def headers(
    metadata: Mapping[str, str] | Iterable[tuple[str, str]] | None, route_key: str | None = None
) -> Headers:
    """The call's metadata, checked before gRPC refuses it less clearly.

    Args:
        metadata: Names (lower case) and values (printable ASCII).
        route_key: Who the caller is, for the server's sticky choice of a variant.

    Raises:
        InvalidRequest: A name or value that HTTP/2 cannot carry.
    """
    pairs = list(metadata.items() if isinstance(metadata, Mapping) else metadata or ())
    if route_key is not None:
        pairs.append(("hedgerow-route-key", route_key))
    for name, value in pairs:
        if not _HEADER.fullmatch(name):
            raise InvalidRequest(
                f"metadata name {name!r}: use lower-case letters, digits, '-', '_' and '.', and no 'grpc-'"
            )
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidRequest(f"metadata {name!r}: the value may hold only printable ASCII")
    return tuple(pairs)
