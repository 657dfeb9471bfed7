"""`python kserve_caller.py HOST:PORT CASES.npz`: asks a server through kserve's client, answers on stdout.

A program of its own, because kserve and tritonclient cannot share a process.
CASES.npz holds arrays named `MODEL/raw|typed/CASE/INPUT`; the answers are an
.npz of arrays `MODEL/raw|typed/CASE/OUTPUT`.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict

import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.utils.numpy_codec import from_np_dtype


async def main(address: str, path: str) -> None:
    cases: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for key, values in np.load(path, allow_pickle=True).items():
        case, _, name = key.rpartition("/")
        cases[case][name] = values
    answers = {}
    async with InferenceGRPCClient(address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        for case, tensors in cases.items():
            model, form, _ = case.split("/")
            assert await client.is_model_ready(model)
            inputs = []
            for name, values in tensors.items():
                tensor = InferInput(name, list(values.shape), from_np_dtype(values.dtype))
                tensor.set_data_from_numpy(values, binary_data=form == "raw")
                inputs.append(tensor)
            response = await client.infer(InferRequest(model, inputs, request_id=case))
            assert response.id == case
            for output in response.outputs:
                answers[f"{case}/{output.name}"] = output.as_numpy()
    np.savez(sys.stdout.buffer, **answers)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
