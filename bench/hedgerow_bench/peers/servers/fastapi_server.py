"""FastAPI on uvicorn, uvloop and httptools: MODEL PORT raw|pydantic."""

import sys

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
app = FastAPI()


class Question(BaseModel):
    rows: list[list[float]]


class Answer(BaseModel):
    rows: list[list[float]]


if sys.argv[3] == "raw":

    @app.post("/infer")
    async def infer(request: Request) -> Response:
        rows = np.asarray(orjson.loads(await request.body())["rows"], np.float32)
        (answer,) = session.run(None, {"x": rows})
        body = orjson.dumps({"rows": answer}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json")

else:

    @app.post("/infer")
    async def infer_validated(question: Question) -> Answer:
        (answer,) = session.run(None, {"x": np.asarray(question.rows, np.float32)})
        return Answer(rows=answer.tolist())


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
