"""A gRPC server that misbehaves on demand, and both clients called alike."""

# ruff: noqa: N802 - gRPC's method names

from __future__ import annotations

import asyncio
import threading

import grpc
import hedgerow
from hedgerow_protos import open_inference_pb2 as pb
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceServicer


class Peer(GRPCInferenceServiceServicer):
    """Answers by model name; remembers what it was asked."""

    def __init__(self):
        self.calls: list[str] = []
        self.metadata: list[dict[str, str]] = []
        self.requests: list[pb.ModelInferRequest] = []
        self.connections: set[str] = set()
        self.cancelled = threading.Event()
        self.arrived = threading.Event()
        self.datatype = "FP32"

    def ModelMetadata(self, request, context):
        self.calls.append("ModelMetadata")
        reply = pb.ModelMetadataResponse(name=request.name, versions=["1"])
        reply.inputs.add(name="x", datatype=self.datatype, shape=[-1, 3])
        return reply

    def ModelReady(self, request, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")

    def ServerLive(self, request, context):
        return pb.ServerLiveResponse(live=True)

    def ModelInfer(self, request, context):
        self.calls.append("ModelInfer")
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.connections.add(context.peer())
        context.set_trailing_metadata((("x-request-id", "r-1"), ("traceparent", "00-aa-bb-01")))
        return getattr(self, request.model_name.split(":")[0])(request, context)

    def ModelStreamInfer(self, requests, context):
        for request in requests:
            if request.model_name == "fails":
                error = pb.ModelStreamInferResponse(error_message="this one is wrong")
                error.infer_response.id = request.id
                yield error
            else:
                yield pb.ModelStreamInferResponse(
                    infer_response=getattr(self, request.model_name)(request, context)
                )

    def echo(self, request, context):
        reply = pb.ModelInferResponse(model_name=request.model_name, model_version="7", id=request.id)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            reply.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            reply.raw_output_contents.append(raw)
        return reply

    def hedged(self, request, context):
        reply = self.echo(request, context)
        for key, value in (
            ("outcome", "hedge"),
            ("features", "stale"),
            ("variant", "economy"),
            ("region", "b"),
        ):
            reply.parameters[f"hedgerow_{key}"].string_param = value
        reply.parameters["count"].int64_param = 3
        return reply

    def picky(self, request, context):
        if request.inputs[0].datatype != self.datatype:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"x must be {self.datatype}")
        return self.echo(request, context)

    def status(self, request, context):
        if request.model_name.endswith("RESOURCE_EXHAUSTED"):
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "250"), ("x-request-id", "r-1")))
        context.abort(grpc.StatusCode[request.model_name.split(":")[1]], "because")

    def raises(self, request, context):
        raise RuntimeError("a defect")

    def flaky(self, request, context):
        if len(self.requests) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        return self.echo(request, context)

    def stuck(self, request, context):
        context.add_callback(self.cancelled.set)
        self.arrived.set()
        self.cancelled.wait(20)
        return pb.ModelInferResponse()

    def truncated(self, request, context):
        reply = self.echo(request, context)
        reply.raw_output_contents[0] = reply.raw_output_contents[0][:-1]
        return reply

    def raw_missing(self, request, context):
        reply = self.echo(request, context)
        reply.outputs.add(name="more", datatype="FP32", shape=[1])
        return reply

    def twice(self, request, context):
        reply = self.echo(request, context)
        reply.MergeFrom(self.echo(request, context))
        return reply

    def typed(self, request, context):
        reply = pb.ModelInferResponse(model_name="typed", model_version="1")
        reply.outputs.add(name="y", datatype="FP32", shape=[2]).contents.fp32_contents.extend([1, 2])
        return reply


class Blocking:
    """hedgerow.Client, called as tests call both clients."""

    def __init__(self, *args, **kwargs):
        self.client = hedgerow.Client(*args, **kwargs)

    def __call__(self, method, *args, **kwargs):
        return getattr(self.client, method)(*args, **kwargs)

    def stream(self, *args, **kwargs):
        return list(self.client.stream(*args, **kwargs))

    def close(self):
        self.client.close()


class Asyncio:
    """hedgerow.AsyncClient on a loop of its own, called as tests call both clients."""

    def __init__(self, *args, **kwargs):
        self.runner = asyncio.Runner()
        self.client = hedgerow.AsyncClient(*args, **kwargs)

    def __call__(self, method, *args, **kwargs):
        async def call():
            return await getattr(self.client, method)(*args, **kwargs)

        return self.runner.run(call())

    def stream(self, *args, **kwargs):
        async def collect():
            return [reply async for reply in self.client.stream(*args, **kwargs)]

        return self.runner.run(collect())

    def close(self):
        self.runner.run(self.client.close())
        self.runner.close()
