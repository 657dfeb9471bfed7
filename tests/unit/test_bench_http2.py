"""The load generator's HTTP/2, against frames written here by the RFC."""

import contextlib
import struct

import hpack
import pytest
from hedgerow_bench.header_block import StatusReader
from hedgerow_bench.http2 import OK, UNAVAILABLE, UNSEEN, Connection
from hypothesis import given
from hypothesis import strategies as st

DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def frames(data):
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), bytes(data[9 : 9 + size])))
        data = data[9 + size :]
    return found


def settings(**values):
    keys = {"table": 1, "streams": 3, "window": 4, "frame": 5}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", keys[key], v) for key, v in values.items()))


def block(*fields):
    """Stateless, as the client asks for."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode(list(fields))


def answer(stream, status="0"):
    return (
        frame(HEADERS, END_HEADERS, stream, block((":status", "200"), ("content-type", "application/grpc")))
        + frame(DATA, 0, stream, b"\0\0\0\0\1x")
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, block(("grpc-status", status)))
    )


def connected(**values):
    connection = Connection("host:1", "/s/M", (("te", "trailers"),))
    assert not connection.has_room(1)
    connection.receive(settings(**values))
    connection.out.clear()
    return connection


def test_it_introduces_itself_and_forbids_a_header_table():
    connection = Connection("host:1", "/s/M", ())
    assert connection.out.startswith(PREFACE)
    (kind, _, stream, payload), window = frames(connection.out[len(PREFACE) :])
    assert (kind, stream) == (SETTINGS, 0)
    assert dict(struct.iter_unpack(">HI", payload))[1] == 0
    assert window[0] == WINDOW


def test_every_request_decodes_to_the_same_headers():
    """The first fills the server's table; the later ones are a few bytes each."""
    connection = connected()
    for number in range(3):
        connection.ask(number, b"body")
    decoder = hpack.Decoder()
    sent = frames(connection.out)
    assert [each[:3] for each in sent] == [
        (kind, flags, stream)
        for stream in (1, 3, 5)
        for kind, flags in ((HEADERS, END_HEADERS), (DATA, END_STREAM))
    ]
    blocks = [payload for kind, _, _, payload in sent if kind == HEADERS]
    decoded = [decoder.decode(each) for each in blocks]
    assert decoded[0] == decoded[1] == decoded[2]
    assert dict(decoded[0])[":path"] == "/s/M"
    assert len(blocks[2]) == len(decoded[0]) < len(blocks[0])


def test_a_server_without_a_table_gets_headers_in_full():
    connection = connected(table=0)
    connection.ask(0, b"")
    connection.ask(1, b"")
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 0
    blocks = [payload for kind, _, _, payload in frames(connection.out) if kind == HEADERS]
    assert decoder.decode(blocks[0]) == decoder.decode(blocks[1])


@given(st.data())
def test_answers_are_told_apart_however_the_bytes_are_cut(data):
    statuses = data.draw(st.lists(st.sampled_from(["0", "3", "14"]), min_size=1, max_size=5))
    connection = connected()
    for number in range(len(statuses)):
        connection.ask(number, b"x")
    stream = b"".join(answer(2 * number + 1, status) for number, status in enumerate(statuses))
    ended = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        ended += connection.receive(stream[:cut])
        stream = stream[cut:]
    expected = [OK if status == "0" else f"grpc-status {status}" for status in statuses]
    assert ended == list(enumerate(expected))
    assert connection.under_way == 0


def test_an_answer_of_trailers_only_is_an_error():
    connection = connected()
    connection.ask(7, b"x")
    trailers = block((":status", "200"), ("grpc-status", "12"))
    assert connection.receive(frame(HEADERS, END_HEADERS | END_STREAM, 1, trailers)) == [
        (7, "grpc-status 12")
    ]


def test_an_answer_that_ends_without_a_status_is_no_answer():
    connection = connected()
    connection.ask(7, b"x")
    headers = frame(HEADERS, END_HEADERS, 1, block((":status", "200")))
    assert connection.receive(headers + frame(DATA, END_STREAM, 1, b"x")) == [(7, "no trailers")]


def test_requests_that_a_leaving_server_did_not_see_may_be_sent_again():
    connection = connected()
    for number in range(3):
        connection.ask(number, b"x")
    assert connection.receive(frame(GOAWAY, 0, 0, struct.pack(">II", 3, 0))) == [(2, UNSEEN)]
    assert not connection.has_room(1)
    assert connection.receive(answer(1)) == [(0, OK)]
    assert connection.lost() == [(1, UNAVAILABLE)]


@pytest.mark.parametrize(("code", "status"), [(7, UNSEEN), (2, UNAVAILABLE)])
def test_a_refused_stream_is_not_a_broken_one(code, status):
    connection = connected()
    connection.ask(0, b"x")
    assert connection.receive(frame(RST, 0, 1, struct.pack(">I", code))) == [(0, status)]


def test_it_keeps_to_the_servers_limits():
    connection = connected(streams=2, frame=16_384)
    connection.ask(0, bytes(40_000))
    assert [len(each[3]) for each in frames(connection.out) if each[0] == DATA] == [16_384, 16_384, 7_232]
    assert not connection.has_room(30_000), "65,535 bytes may be under way on a connection"
    connection.receive(frame(WINDOW, 0, 0, struct.pack(">I", 40_000)))
    assert connection.has_room(30_000)
    connection.ask(1, b"x")
    assert not connection.has_room(1), "two streams are open"
    with pytest.raises(ValueError, match="window"):
        connection.has_room(70_000)


def test_pings_are_answered():
    connection = connected()
    connection.receive(frame(PING, 0, 0, b"12345678"))
    assert frames(connection.out) == [(PING, 1, 0, b"12345678")]


NAMES = st.sampled_from([":status", "grpc-status", "content-type", "x-request-id", "traceparent", "é"])


@given(
    fields=st.lists(st.tuples(NAMES, st.text(st.characters(codec="latin-1"), max_size=200)), max_size=6),
    huffman=st.booleans(),
)
def test_the_status_is_read_from_a_block_as_a_decoder_reads_it(
    fields: list[tuple[str, str]], *, huffman: bool
) -> None:
    """Whatever else is in the block, and however it is encoded."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    block = encoder.encode([(k.encode(), v.encode()) for k, v in fields], huffman=huffman)
    wanted = {k: v for k, v in hpack.Decoder().decode(block, raw=True) if k in {b":status", b"grpc-status"}}
    assert StatusReader().read(block) == wanted


@given(block=st.binary(max_size=40))
def test_a_damaged_block_is_an_error_and_nothing_else(block: bytes) -> None:
    with contextlib.suppress(ValueError, hpack.HPACKError):
        StatusReader().read(block)
