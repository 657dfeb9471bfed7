"""What the tests of the hedger write short: how attempts end, who answered, and when."""

from __future__ import annotations

import asyncio

import grpc
from fakes_engine import Reply
from hedging_world import NEVER, Ends

OK = grpc.StatusCode.OK
HANGS, FAILS = Ends("answer", NEVER), Ends("fail", 0.001)


def outcome(reply: Reply) -> tuple[float, str, str]:
    """Who answered: the value, and what the reply says of it."""
    said = reply.response.parameters
    value = float(reply.tensors["y"].ravel()[0])
    return value, said["hedgerow_outcome"].string_param, said["hedgerow_region"].string_param


def now() -> float:
    return asyncio.get_running_loop().time()
