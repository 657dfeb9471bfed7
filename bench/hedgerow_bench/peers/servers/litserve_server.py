"""LitServe with one worker process, batches of up to 64 and its fast queue: MODEL PORT."""

import os
import sys

import litserve
import numpy as np
import onnxruntime as ort

# Its worker process imports this file without the command line.
MODEL = os.environ.setdefault("BENCH_MODEL", sys.argv[1] if len(sys.argv) > 1 else "")


class Mlp(litserve.LitAPI):
    def setup(self, device):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        return np.asarray(request["rows"], np.float32)

    def batch(self, inputs):
        return np.concatenate(inputs)

    def predict(self, rows):
        (answer,) = self.session.run(None, {"x": rows})
        return answer

    def unbatch(self, answer):
        return [row[None] for row in answer]

    def encode_response(self, answer):
        return {"rows": answer.tolist()}


if __name__ == "__main__":
    api = Mlp(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
