"""MLServer over gRPC, without its worker pool: MODEL PORT OTHER_PORT."""

import asyncio
import os
import sys

import onnxruntime as ort
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Mlp(MLModel):
    async def load(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload):
        (answer,) = self.session.run(None, {"x": NumpyCodec.decode_input(payload.inputs[0])})
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("y", answer)], id=payload.id
        )


async def main():
    settings = Settings(
        host="127.0.0.1",
        grpc_port=int(sys.argv[2]),
        http_port=int(sys.argv[3]),
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
    )
    await MLServer(settings).start([ModelSettings(name="mlp", implementation=Mlp)])


if __name__ == "__main__":
    os.environ["BENCH_MODEL"] = sys.argv[1]
    asyncio.run(main())
