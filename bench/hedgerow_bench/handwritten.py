"""The yardstick: the server that a team writes first, `grpc.aio` and ONNX Runtime in 30 lines.

No batching, no routing, no metrics, no log; one FP32 input and output. It speaks
enough of the Open Inference Protocol for a load generator:

    python -m hedgerow_bench.handwritten mlp.onnx 18002
"""

from __future__ import annotations

import argparse

import grpc
import numpy as np
import onnxruntime as ort
import uvloop
from hedgerow_protos import open_inference_pb2 as oip

_SERVICE = "inference.GRPCInferenceService"


async def serve(path: str, port: int, message_bytes: int) -> None:
    """Serves the model until the process is ended."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (source,), (target,) = session.get_inputs(), session.get_outputs()

    async def infer(
        request: oip.ModelInferRequest,
        context: grpc.aio.ServicerContext[oip.ModelInferRequest, oip.ModelInferResponse],
    ) -> oip.ModelInferResponse:
        del context
        shape = tuple(request.inputs[0].shape)
        rows = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(shape)
        (answer,) = session.run([target.name], {source.name: rows})
        reply = oip.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        reply.outputs.add(name=target.name, datatype="FP32", shape=answer.shape)
        reply.raw_output_contents.append(answer.tobytes())
        return reply

    sizes = [("grpc.max_receive_message_length", message_bytes), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=sizes if message_bytes else None)
    handler = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=oip.ModelInferRequest.FromString,
        response_serializer=oip.ModelInferResponse.SerializeToString,
    )
    handlers = grpc.method_handlers_generic_handler(_SERVICE, {"ModelInfer": handler})
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"handwritten ready grpc=127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="an ONNX file with one FP32 input and output")
    parser.add_argument("port", type=int, help="0 for a free one")
    parser.add_argument("message_bytes", type=int, nargs="?", default=0, help="limit; grpcio's own is 4 MiB")
    options = parser.parse_args()
    uvloop.run(serve(options.model, options.port, options.message_bytes))


if __name__ == "__main__":
    main()
