"""A model's answer: arrays by output name, and what the server says about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hedgerow_protos import open_inference_pb2 as pb
from hedgerow_protos.hedging import REGION

from hedgerow.errors import HedgerowError, InvalidReply
from hedgerow.infer_request import Parameter
from hedgerow.tensors import Array, decode, decode_contents


@dataclass(frozen=True, slots=True, eq=False)
class InferResult(Mapping[str, Array]):
    """The outputs by name, `result["probability"]`, and how they came about.

    Numeric outputs are read-only views of the reply; `.copy()` one to write to it.

    Attributes:
        model: The model's name.
        model_version: The version that answered.
        outputs: Arrays by output name.
        parameters: Everything the server added.
        request_id: The request's id; the server's own if the caller gave none.
        traceparent: The W3C trace context under which the server recorded the call.
        target: The address that answered, where a client has backups; else "".
        attempt: What brought the answer to such a client: `primary`, `hedge` or `failover`.
    """

    model: str
    model_version: str
    outputs: Mapping[str, Array]
    parameters: Mapping[str, Parameter]
    request_id: str
    traceparent: str
    target: str = ""
    attempt: str = "primary"

    def __getitem__(self, name: str) -> Array:
        try:
            return self.outputs[name]
        except KeyError:
            known = ", ".join(map(repr, self.outputs)) or "none"
            raise KeyError(f"no output {name!r}; the reply has {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def outcome(self) -> str:
        """Who answered: `primary` (the plain case), `hedge`, `failover` or `fallback`.

        The server's word, if it is not the plain case there; else the client's own hedge or failover.
        """
        said = self._said("hedgerow_outcome")
        return self.attempt if said is None or said == "primary" else said

    @property
    def variant(self) -> str | None:
        """The route that led here, such as `champion`; None if the server did not say."""
        return self._said("hedgerow_variant")

    @property
    def region(self) -> str | None:
        """The region that answered; None if the server did not say."""
        return self._said("hedgerow_region")

    @property
    def rule(self) -> str | None:
        """The fallback rule that answered in the model's place; None if the model answered.

        Where several answered rows, their names with commas between, those of most rows first.
        """
        return self._said("hedgerow_rule")

    @property
    def features(self) -> str | None:
        """The age of joined features: `fresh`, `stale` or `default`; None if none were joined."""
        return self._said("hedgerow_features")

    def _said(self, name: str) -> str | None:
        value = self.parameters.get(name)
        return None if value is None else str(value)


def read(
    response: pb.ModelInferResponse,
    trailing: Mapping[str, str | bytes],
    *,
    kind: str = "primary",
    target: str = "",
) -> InferResult:
    """The result in a reply.

    Args:
        response: The reply.
        trailing: Its trailing metadata.
        kind: Of the attempt that brought it.
        target: That it comes from.

    Raises:
        InvalidReply: The contents disagree with the outputs' names, shapes or datatypes.
    """
    raws = response.raw_output_contents
    outputs: dict[str, Array] = {}
    if raws and len(raws) != len(response.outputs):
        raise InvalidReply(f"the reply describes {len(response.outputs)} outputs and holds {len(raws)}")
    for position, output in enumerate(response.outputs):
        name = output.name
        if name in outputs:
            raise InvalidReply(f"the reply holds output {name!r} twice")
        if raws:
            outputs[name] = decode(name, output.datatype, output.shape, raws[position])
        else:
            outputs[name] = decode_contents(name, output.datatype, output.shape, output.contents)
    parameters = {
        name: getattr(parameter, choice)
        for name, parameter in response.parameters.items()
        if (choice := parameter.WhichOneof("parameter_choice"))
    }
    if REGION in trailing:  # as a server tells another region, and whoever asks it after another
        parameters.setdefault("hedgerow_region", str(trailing[REGION]))
    return InferResult(
        model=response.model_name,
        model_version=response.model_version,
        outputs=outputs,
        parameters=parameters,
        request_id=response.id or str(trailing.get("x-request-id", "")),
        traceparent=str(trailing.get("traceparent", "")),
        target=target,
        attempt=kind,
    )


def read_stream(response: pb.ModelStreamInferResponse) -> InferResult | HedgerowError:
    """The result, or the failure of one request, in a stream's reply.

    Raises:
        InvalidReply: As for `read`.
    """
    if response.error_message:
        # The protocol has no status for one request of a stream, only this text.
        return HedgerowError(response.error_message, request_id=response.infer_response.id)
    return read(response.infer_response, {})
