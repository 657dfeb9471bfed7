"""KServe's SDK over gRPC: MODEL PORT OTHER_PORT."""

import sys

MODEL, PORT, OTHER = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
del sys.argv[1:]  # kserve reads it when it is imported

import kserve  # noqa: E402
import onnxruntime as ort  # noqa: E402


class Mlp(kserve.Model):
    def __init__(self):
        super().__init__("mlp")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        (answer,) = self.session.run(None, {"x": payload.inputs[0].as_numpy()})
        output = kserve.InferOutput("y", list(answer.shape), "FP32")
        output.set_data_from_numpy(answer, binary_data=True)
        return kserve.InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    # It logs a line for each request unless told not to.
    kserve.ModelServer(http_port=OTHER, grpc_port=PORT, workers=1, enable_latency_logging=False).start(
        [Mlp()]
    )
