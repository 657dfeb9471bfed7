"""mosec with one worker process, raw FP32 in and out: MODEL PORT LARGEST_BATCH."""

import os
import sys

import numpy as np
import onnxruntime as ort
from mosec import Server, Worker

# Its worker processes import this file without the command line.
MODEL = os.environ.setdefault("BENCH_MODEL", sys.argv[1] if len(sys.argv) > 1 else "")
BATCH = int(os.environ.setdefault("BENCH_BATCH", sys.argv[3] if len(sys.argv) > 3 else "1"))


class Mlp(Worker):
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])

    def deserialize(self, data):
        return np.frombuffer(data, np.float32)

    def serialize(self, data):
        return data.tobytes()

    def forward(self, data):
        rows = np.stack(data) if BATCH > 1 else data[None]
        (answer,) = self.session.run(None, {"x": rows})
        return list(answer) if BATCH > 1 else answer[0]


if __name__ == "__main__":
    port = sys.argv[2]
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", port, "--log-level", "warning"]
    server = Server()
    # A batch goes when it is full or after a millisecond, the shortest there is.
    server.append_worker(Mlp, num=1, max_batch_size=BATCH, max_wait_time=1 if BATCH > 1 else 0)
    server.run()
