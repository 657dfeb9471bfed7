"""PyTriton: Triton in C++ in front, the model in this process: MODEL PORT OTHER_PORT THIRD_PORT."""

import os
import sys
import sysconfig

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

if __name__ == "__main__":
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    @batch
    def infer(x):
        return session.run(None, {"x": x})

    # Its backend process is linked with libpython; another release's than this one's ends it.
    libraries = (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH"))
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))

    ports = {"grpc_port": int(sys.argv[2]), "http_port": int(sys.argv[3]), "metrics_port": int(sys.argv[4])}
    with Triton(config=TritonConfig(grpc_address="127.0.0.1", http_address="127.0.0.1", **ports)) as triton:
        triton.bind(
            model_name="mlp",
            infer_func=infer,
            inputs=[Tensor(name="x", dtype=np.float32, shape=(32,))],
            outputs=[Tensor(name="y", dtype=np.float32, shape=(1,))],
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
