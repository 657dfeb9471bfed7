"""ModelInfer and ModelStreamInfer on grpc.aio.

Handlers are coroutines here, one for each call; those that arrive in one turn
of the loop are handed to the request path together, so they share a batch as
they do on the native transport.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from hedgerow_protos.open_inference_pb2 import ModelStreamInferResponse

from hedgerow_server.answer import Answerer
from hedgerow_server.call import Call

#: Requests of one stream under way at once; the stream is read no further meanwhile.
STREAM_WINDOW = 256

Trailing = list[tuple[str, str | bytes]]


class Failure(Exception):
    """A call ended with a status other than OK."""

    def __init__(self, code: grpc.StatusCode, message: str, trailing: Trailing) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.trailing = trailing


class _Waiter:
    """The sink of one call: a future that its handler awaits."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[tuple[bytes, Trailing] | Failure]) -> None:
        self.future = future

    def respond(self, call: Call, payload: bytes, trailing: Trailing) -> None:
        del call
        if not self.future.done():
            self.future.set_result((payload, trailing))

    def fail(self, call: Call, code: grpc.StatusCode, message: str, trailing: Trailing) -> None:
        del call
        if not self.future.done():
            self.future.set_result(Failure(code, message, trailing))


class InferHandlers:
    """The two inference methods; messages pass as bytes, the request path parses them.

    Args:
        answerer: the request path.
        said: trailing metadata of every reply to ModelInfer.
    """

    def __init__(self, answerer: Answerer, said: Sequence[tuple[str, str]] = ()) -> None:
        self._answerer = answerer
        self._said = said
        self._arrived: list[Call] = []

    def _arrive(self, call: Call) -> None:
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._arrived.append(call)

    def _hand_over(self) -> None:
        arrived, self._arrived = self._arrived, []
        self._answerer.answer(arrived)

    async def infer(self, payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        """ModelInfer."""
        future = asyncio.get_running_loop().create_future()
        call = _call(payload, context, _Waiter(future))
        self._arrive(call)
        try:
            result = await future
        except asyncio.CancelledError:
            self._give_up(call)
            raise
        if isinstance(result, Failure):
            await context.abort(result.code, result.message, (*result.trailing, *self._said))
        reply, trailing = result
        context.set_trailing_metadata((*trailing, *self._said))
        return bytes(reply)

    async def stream(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        """ModelStreamInfer: replies go out as they come, each with its request's id.

        A request that fails gets an `error_message`; the stream goes on.
        """
        window = asyncio.Semaphore(STREAM_WINDOW)
        replies: asyncio.Queue[bytes | None] = asyncio.Queue()
        calls: set[Call] = set()
        sink = _StreamSink(replies, calls)

        async def write() -> None:
            while (reply := await replies.get()) is not None:
                await context.write(reply)
                # Only now: who does not read its replies is read no further.
                window.release()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(write())
                async for payload in requests:
                    await window.acquire()
                    call = _call(payload, context, sink)
                    calls.add(call)
                    self._arrive(call)
                # Every place in the window is free again when every reply is written.
                for _ in range(STREAM_WINDOW):
                    await window.acquire()
                replies.put_nowait(None)
        finally:
            for call in list(calls):
                self._give_up(call)

    def _give_up(self, call: Call) -> None:
        if call in self._arrived:
            # Not handed over yet: the request path will find it ended.
            call.ended = True
        else:
            self._answerer.cancel(call)


class _StreamSink:
    """The sink of all calls of one stream; the queue is bounded by the window."""

    __slots__ = ("_calls", "_replies")

    def __init__(self, replies: asyncio.Queue[bytes | None], calls: set[Call]) -> None:
        self._replies = replies
        self._calls = calls

    def _put(self, call: Call, reply: bytes) -> None:
        self._calls.discard(call)
        self._replies.put_nowait(reply)

    def respond(self, call: Call, payload: bytes, trailing: Trailing) -> None:
        del trailing
        wrapper = ModelStreamInferResponse()
        wrapper.infer_response.MergeFromString(payload)
        self._put(call, wrapper.SerializeToString())

    def fail(self, call: Call, code: grpc.StatusCode, message: str, trailing: Trailing) -> None:
        del trailing
        wrapper = ModelStreamInferResponse(error_message=f"[{code.name}] {message}")
        wrapper.infer_response.id = call.request_id
        self._put(call, wrapper.SerializeToString())


def _call(payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes], sink: Any) -> Call:
    metadata = context.invocation_metadata() or ()
    return Call(payload, metadata, context.time_remaining(), sink, 0, time.perf_counter_ns())  # type: ignore[arg-type]  # grpcio's pairs are named tuples
