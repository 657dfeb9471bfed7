"""BentoML with one worker; started by `bentoml serve`, the model's path in BENCH_MODEL."""

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
import onnxruntime as ort
from bentoml.validators import DType

Rows = Annotated[np.ndarray, DType("float32")]


@bentoml.service(
    workers=1, traffic={"timeout": 30, "max_concurrency": 10_000}, logging={"access": {"enabled": False}}
)
class Mlp:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api
    async def infer(self, rows: Rows) -> Rows:
        (answer,) = self.session.run(None, {"x": rows})
        return answer


if __name__ == "__main__":
    os.environ["BENCH_MODEL"] = sys.argv[1]
    here = Path(__file__)
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", f"{here.stem}:Mlp"]
    command += ["--host", "127.0.0.1", "--port", sys.argv[2], "--working-dir", str(here.parent)]
    os.execv(command[0], command)  # noqa: S606 - the program beside this Python
