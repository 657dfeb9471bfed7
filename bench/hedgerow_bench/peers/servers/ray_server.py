"""Ray Serve with one replica over HTTP: MODEL PORT."""

import signal
import sys
import tempfile

import numpy as np
import onnxruntime as ort
import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

MODEL = sys.argv[1] if len(sys.argv) > 1 else ""


@serve.deployment(num_replicas=1, max_ongoing_requests=1000)
class Mlp:
    def __init__(self, model):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    async def __call__(self, request: Request):
        rows = np.asarray(orjson.loads(await request.body())["rows"], np.float32)
        (answer,) = self.session.run(None, {"x": rows})
        body = orjson.dumps({"rows": answer}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json")


if __name__ == "__main__":
    # The paths of its sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 1024 * 1024,
            logging_level="warning",
            _temp_dir=directory,
        )
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
        serve.run(Mlp.bind(MODEL), route_prefix="/infer")
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        ray.shutdown()
