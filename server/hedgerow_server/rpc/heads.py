"""Requests recognised by their first bytes.

A ModelInferRequest is its head (names, shapes, parameters) and, behind it, the
tensors' bytes. A caller's head is the same from call to call, so what was parsed
and checked once is remembered by the head's bytes: the next request with it costs
one look-up in place of a parse. Only the request's id differs from call to call;
it is cut out before the look-up.

This is exact, not a guess: protobuf's fields are independent of each other, so
two messages that agree byte for byte in all but the contents of the id and of the
raw tensors, and in the lengths of these, mean the same but for them. A message in
any other order of fields, or with typed contents, is parsed as usual.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError
from hedgerow_protos.open_inference_pb2 import InferParameter, ModelInferRequest

from hedgerow_server.engine.work import Part
from hedgerow_server.errors import InvalidTensor

#: Heads remembered at once; then all are forgotten, and learned anew.
KNOWN_HEADS = 2048
#: Bytes of a head that is worth remembering, and raw tensors behind it: what is held stays small.
LONGEST_HEAD = 2048
MOST_RAWS = 64
#: Lengths of heads that are tried for one length of messages: a new message costs few look-ups,
#: whatever came before.
TRIED_SIZES = 4
#: From so many bytes on a tensor is not copied out of its message, but seen in it.
VIEWED_BYTES = 4096

_RAW_TAG = 0x3A  # field 7, length-delimited
_NAME_TAG, _VERSION_TAG, _ID_TAG = 0x0A, 0x12, 0x1A
_AN_ID = b"\x1a\x01?"
_ONE_BYTE = 0x80  # lengths below it take one byte
_NONE: dict[int, dict[bytes, Head]] = {}


class Head:
    """What a request says before its tensors; a key by identity.

    Attributes:
        model_name: The model asked for.
        model_version: The version asked for; empty for the one in service.
        timeout_us: Triton's `timeout` parameter, microseconds; 0 without one.
        priority: Triton's `priority` parameter; 0 without one.
        is_known: Whether it is remembered, so that others may remember what they found out about it.
    """

    __slots__ = (
        "_separators",
        "_spans",
        "is_known",
        "model_name",
        "model_version",
        "priority",
        "timeout_us",
    )

    def __init__(self, model_name: str, model_version: str, timeout_us: int, priority: int) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.timeout_us = timeout_us
        self.priority = priority
        self.is_known = False
        # Of a message without id: where the tensors lie in it, and what stands between them.
        self._spans: tuple[tuple[int, int], ...] = ()
        self._separators: tuple[tuple[int, bytes], ...] = ()

    def fits(self, payload: bytes, shift: int) -> bool:
        """Whether a message that begins as this head does, and is as long, goes on as it says."""
        return not self._separators or all(
            payload.startswith(tag, at + shift) for at, tag in self._separators
        )

    def learn(self, spans: tuple[tuple[int, int], ...], separators: tuple[tuple[int, bytes], ...]) -> None:
        """Takes the layout of a message without its id; from then on it is known."""
        self._spans = spans
        self._separators = separators
        self.is_known = True

    def raws(self, payload: bytes, shift: int) -> list[Part]:
        """The raw tensors of a message with this head, in the message's order."""
        spans = self._spans
        if len(spans) == 1 and len(payload) < VIEWED_BYTES:
            return [payload[spans[0][0] + shift :]]
        return [
            payload[begin + shift : end + shift]
            if end - begin < VIEWED_BYTES
            else memoryview(payload)[begin + shift : end + shift]
            for begin, end in spans
        ]


class Heads:
    """Holds the heads of earlier requests."""

    def __init__(self) -> None:
        # Length of a message without its id -> length of a head that such a message had -> the heads.
        self._known: dict[int, dict[int, dict[bytes, Head]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def find(self, payload: bytes) -> tuple[Head, str, int] | None:
        """The remembered head of a message.

        Returns:
            The head, the request's id and how many bytes it takes in the message; None if the head is new.
        """
        for size, heads in self._known.get(len(payload), _NONE).items():
            head = heads.get(payload[:size])
            if head is not None and head.fits(payload, 0):
                return head, "", 0
        begin, end = _id_span(payload)
        shift = end - begin
        if shift:
            for size, heads in self._known.get(len(payload) - shift, _NONE).items():
                head = heads.get(payload[:begin] + payload[end : size + shift])
                if head is not None and head.fits(payload, shift):
                    try:
                        return head, payload[begin + 2 : end].decode(), shift
                    except UnicodeDecodeError:
                        return None
        return None

    def parse(self, payload: bytes) -> tuple[Head, ModelInferRequest]:
        """Parses a message, and remembers its head if others can be recognised by it.

        Raises:
            InvalidTensor: It is no ModelInferRequest, or a parameter is of the wrong type.
        """
        try:
            request = ModelInferRequest.FromString(payload)
        except DecodeError:
            raise InvalidTensor(
                "the message is not a ModelInferRequest of the Open Inference Protocol"
            ) from None
        parameters = request.parameters
        timeout_us = _integer(parameters["timeout"], "timeout") if "timeout" in parameters else 0
        priority = _integer(parameters["priority"], "priority") if "priority" in parameters else 0
        head = Head(request.model_name, request.model_version, timeout_us, priority)
        if request.raw_input_contents:
            self._learn(head, payload, request)
        return head, request

    def _learn(self, head: Head, payload: bytes, request: ModelInferRequest) -> None:
        raws = request.raw_input_contents
        if len(raws) > MOST_RAWS:
            return
        spans, separators = _layout(payload, raws)
        if not spans:
            return
        begin, end = _id_span(payload)
        shift = end - begin
        size = spans[0][0] - shift
        if size > LONGEST_HEAD or end > separators[0][0]:
            return
        without_id = payload[:begin] + payload[end : size + shift]
        fields = without_id[: -len(separators[0][1])]
        try:
            alone = ModelInferRequest.FromString(_AN_ID + fields)
        except DecodeError:
            return
        # The last id counts, also an empty one. And what is behind the fields is as many tensors as
        # the message has, so none may stand among them.
        if alone.id != "?" or alone.raw_input_contents:
            return
        length = len(payload) - shift
        if self._count >= KNOWN_HEADS:
            self._known.clear()
            self._count = 0
        head.learn(
            tuple([(first - shift, last - shift) for first, last in spans]),
            tuple([(at - shift, tag) for at, tag in separators[1:]]),  # the first ends the head
        )
        sizes = self._known.setdefault(length, {})
        if size not in sizes and len(sizes) >= TRIED_SIZES:
            self._count -= len(sizes.pop(next(iter(sizes))))
        heads = sizes.setdefault(size, {})
        self._count += without_id not in heads
        heads[without_id] = head


def _layout(
    payload: bytes, raws: Sequence[bytes]
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, bytes], ...]]:
    """Where so many raw tensors would lie at the end of a message, and the tags before each.

    Nothing if no such tags stand there.
    """
    spans: list[tuple[int, int]] = []
    separators: list[tuple[int, bytes]] = []
    end = len(payload)
    for raw in reversed(raws):
        begin = end - len(raw)
        tag = bytes((_RAW_TAG,)) + varint(len(raw))
        if begin < len(tag) or not payload.startswith(tag, begin - len(tag)):
            return (), ()
        spans.append((begin, end))
        end = begin - len(tag)
        separators.append((end, tag))
    return tuple(reversed(spans)), tuple(reversed(separators))


def _id_span(payload: bytes) -> tuple[int, int]:
    """Where the id stands, tag and length included, in a message whose fields are in order; (0, 0) if not."""
    at = 0
    try:
        if payload[at] == _NAME_TAG:
            if payload[at + 1] >= _ONE_BYTE:
                return 0, 0
            at += 2 + payload[at + 1]
        if payload[at] == _VERSION_TAG:
            if payload[at + 1] >= _ONE_BYTE:
                return 0, 0
            at += 2 + payload[at + 1]
        if payload[at] == _ID_TAG and payload[at + 1] < _ONE_BYTE:
            return at, at + 2 + payload[at + 1]
    except IndexError:
        pass
    return 0, 0


def _integer(parameter: InferParameter, name: str) -> int:
    kind = parameter.WhichOneof("parameter_choice")
    if kind in {"int64_param", "uint64_param"}:
        return int(getattr(parameter, kind))
    if kind is None:
        return 0
    raise InvalidTensor(f"parameter {name!r} is a {kind.removesuffix('_param')}; send an integer")


def varint(value: int) -> bytes:
    """Protobuf's base-128 number."""
    if value < _ONE_BYTE:
        return bytes((value,))
    out = bytearray()
    while value >= _ONE_BYTE:
        out.append(value & 0x7F | _ONE_BYTE)
        value >>= 7
    out.append(value)
    return bytes(out)
