"""The same numbers as onnxruntime in process, through tritonclient.grpc as NVIDIA ships it.

A request that runs alone must give the same bits. Requests that may share a run
are compared within a tolerance, since a kernel for several rows adds in another
order than the one for one row.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
import real_models
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from real_models import RealModel
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

#: Relative to a value and to the largest of its tensor; FP32 has 1.2e-7 to a bit.
RELATIVE, OF_LARGEST = 1e-4, 1e-5
#: Seconds; bounds a hang.
PATIENCE = 30


@pytest.fixture
def client(server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


def inputs_of(tensors: Mapping[str, np.ndarray]) -> list[triton.InferInput]:
    inputs = []
    for name, values in tensors.items():
        tensor = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def assert_same_bits(result: triton.InferResult, expected: Mapping[str, np.ndarray]) -> None:
    reply = result.get_response()
    assert [output.name for output in reply.outputs] == list(expected)
    for name, values in expected.items():
        answer = result.as_numpy(name)
        assert answer.dtype == values.dtype
        assert answer.shape == values.shape
        assert answer.tobytes() == values.tobytes(), name


def assert_same_numbers(result: triton.InferResult, expected: Mapping[str, np.ndarray]) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(
            result.as_numpy(name),
            values,
            rtol=RELATIVE,
            atol=OF_LARGEST * float(np.abs(values).max()),
            err_msg=name,
        )


def crowd(model: RealModel, count: int = 40) -> list[real_models.Tensors]:
    """Requests to send all at once, of every size the model is asked in."""
    return list(itertools.islice(itertools.cycle(model.requests), count))


def test_one_request_at_a_time_gives_the_same_bits(client, model):
    """Sync calls, nobody else asking: nothing is batched."""
    for request in (*model.requests, *model.alone):
        result = client.infer(model.name, inputs_of(request), client_timeout=PATIENCE)
        assert_same_bits(result, model.expected(request))


async def test_asyncio_one_at_a_time_gives_the_same_bits(server, model):
    async with triton_aio.InferenceServerClient(server.grpc) as client:
        for request in (*model.requests, *model.alone):
            result = await client.infer(model.name, inputs_of(request), client_timeout=PATIENCE)
            assert_same_bits(result, model.expected(request))


async def test_asyncio_all_at_once_gives_everyone_their_own_answer(server, model):
    """Batches form on the server, of requests of different sizes; no answer may go astray."""
    requests = crowd(model)
    async with triton_aio.InferenceServerClient(server.grpc) as client:
        results = await asyncio.gather(
            *(
                client.infer(model.name, inputs_of(request), request_id=str(i), client_timeout=PATIENCE)
                for i, request in enumerate(requests)
            )
        )
    for i, (request, result) in enumerate(zip(requests, results, strict=True)):
        assert result.get_response().id == str(i)
        assert_same_numbers(result, model.expected(request))


def test_callbacks_from_the_sync_client_get_their_own_answer(client, model):
    """async_infer of the sync client: the calls overlap, the callback runs in grpc's thread."""
    requests = crowd(model, 20)
    answers: queue.SimpleQueue[tuple[int, triton.InferResult, Exception | None]] = queue.SimpleQueue()
    for i, request in enumerate(requests):
        client.async_infer(
            model.name,
            inputs_of(request),
            lambda result, error, i=i: answers.put((i, result, error)),
            client_timeout=PATIENCE,
        )
    seen = set()
    for _ in requests:
        i, result, error = answers.get(timeout=PATIENCE)
        assert error is None
        seen.add(i)
        assert_same_numbers(result, model.expected(requests[i]))
    assert seen == set(range(len(requests)))


class Stream:
    """A stream of the sync client whose replies are taken one by one."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self._replies: queue.SimpleQueue[tuple[triton.InferResult, Exception | None]] = queue.SimpleQueue()
        client.start_stream(lambda result, error: self._replies.put((result, error)))

    def reply(self) -> triton.InferResult:
        result, error = self._replies.get(timeout=PATIENCE)
        assert error is None, error
        return result

    def error(self) -> InferenceServerException:
        result, error = self._replies.get(timeout=PATIENCE)
        assert result is None
        assert isinstance(error, InferenceServerException)
        return error


def test_a_stream_one_at_a_time_gives_the_same_bits(client, model):
    stream = Stream(client)
    for request in (*model.requests, *model.alone):
        client.async_stream_infer(model.name, inputs_of(request))
        assert_same_bits(stream.reply(), model.expected(request))
    client.stop_stream()


def test_a_stream_of_many_requests_gives_every_id_its_own_answer(client, model):
    """Everything is sent before the first reply is read."""
    stream = Stream(client)
    requests = crowd(model)
    for i, request in enumerate(requests):
        client.async_stream_infer(model.name, inputs_of(request), request_id=str(i))
    waiting = dict(enumerate(requests))
    while waiting:
        result = stream.reply()
        assert_same_numbers(result, model.expected(waiting.pop(int(result.get_response().id))))
    client.stop_stream()


async def test_an_asyncio_stream_gives_the_same_bits(server, model):
    requests: Sequence[real_models.Tensors] = model.requests
    answered = asyncio.Event()

    async def ask():
        for i, request in enumerate(requests):
            yield {"model_name": model.name, "inputs": inputs_of(request), "request_id": str(i)}
            await answered.wait()
            answered.clear()

    async with triton_aio.InferenceServerClient(server.grpc) as client:
        count = 0
        async for result, error in client.stream_infer(ask(), stream_timeout=PATIENCE):
            assert error is None
            assert result.get_response().id == str(count)
            assert_same_bits(result, model.expected(requests[count]))
            count += 1
            answered.set()
    assert count == len(requests)


def test_a_failed_request_leaves_its_stream_open(client, models):
    """The error comes as a message of the stream; the next request is answered."""
    stream = Stream(client)
    model = models["arrival_delay_v1"]
    client.async_stream_infer(model.name, inputs_of({"features": np.zeros((1, 3), np.float32)}))
    assert "[1, 3]" in str(stream.error())
    client.async_stream_infer(model.name, inputs_of(model.requests[0]))
    assert_same_bits(stream.reply(), model.expected(model.requests[0]))
    client.stop_stream()


def test_a_caller_can_carry_silero_state_through_the_server(client, models):
    """40 frames, each with the state that the server gave with the one before: bits stay equal to the end."""
    session = real_models.in_process(models["silero_vad"].path)
    ours = theirs = np.zeros((2, 1, 128), np.float32)
    heard = []
    for frame in real_models.silero_frames(40):
        result = client.infer("silero_vad", inputs_of(real_models.silero_request(frame, ours)))
        ours = result.as_numpy("stateN")
        probability, theirs = session.run(["output", "stateN"], real_models.silero_request(frame, theirs))
        assert result.as_numpy("output").tobytes() == probability.tobytes()
        assert ours.tobytes() == theirs.tobytes()
        heard.append(float(probability[0, 0]))
    # Otherwise nothing was heard, and equal numbers say little.
    assert max(heard) > 0.9
    assert min(heard) < 0.5


def test_magika_knows_the_files_by_what_the_server_says(client):
    """Not only equal numbers: the right ones."""
    model, labels = real_models.magika(), real_models.magika_labels()
    result = client.infer("magika", inputs_of(model.requests[-1]))
    guesses = [labels[i] for i in result.as_numpy("target_label").argmax(axis=1)]
    assert guesses == ["python", "toml", "jsonl", "onnx", "randombytes"]


def test_only_the_outputs_asked_for_come_back_in_the_order_asked(client, models):
    model = models["silero_vad"]
    expected = model.expected(model.requests[0])
    for names in (["stateN"], ["output"], ["stateN", "output"]):
        asked = [triton.InferRequestedOutput(name) for name in names]
        result = client.infer(model.name, inputs_of(model.requests[0]), outputs=asked)
        assert_same_bits(result, {name: expected[name] for name in names})


def test_metadata_and_configuration_describe_what_onnxruntime_sees(client, model):
    """Names, order, types and sizes, -1 where they vary; Triton's form leaves the batch dimension out."""
    session = real_models.in_process(model.path)
    metadata = client.get_model_metadata(model.name)
    config = client.get_model_config(model.name).config
    assert (metadata.name, list(metadata.versions)) == (model.name, ["1"])
    skip = 1 if config.max_batch_size else 0
    for described, configured, seen in (
        (metadata.inputs, config.input, session.get_inputs()),
        (metadata.outputs, config.output, session.get_outputs()),
    ):
        assert [tensor.name for tensor in described] == [tensor.name for tensor in seen]
        assert [tensor.name for tensor in configured] == [tensor.name for tensor in seen]
        for tensor, short, true in zip(described, configured, seen, strict=True):
            sizes = [size if isinstance(size, int) else -1 for size in true.shape]
            # Triton has no scalars: one element.
            assert list(tensor.shape) == (sizes or [1])
            assert list(short.dims) == list(tensor.shape)[skip:]
            assert {"FP32": "tensor(float)", "INT32": "tensor(int32)", "INT64": "tensor(int64)"}[
                tensor.datatype
            ] == true.type


def test_statistics_count_what_was_asked(client, models):
    """perf_analyzer tells by these which version answered, and how long the server took."""
    model = models["arrival_delay_v1"]

    def read():
        (statistics,) = client.get_inference_statistics(model.name).model_stats
        return statistics

    before = read()
    client.infer(model.name, inputs_of({"features": np.zeros((7, 12), np.float32)}))
    with pytest.raises(InferenceServerException):
        client.infer(model.name, inputs_of({"features": np.zeros((7, 3), np.float32)}))
    after = read()
    assert after.inference_count - before.inference_count == 7
    assert after.execution_count - before.execution_count == 1
    for name, count in (("success", 1), ("fail", 1), ("queue", 1), ("compute_infer", 1)):
        assert (
            getattr(after.inference_stats, name).count - getattr(before.inference_stats, name).count == count
        ), name
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
