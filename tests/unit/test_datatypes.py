"""The table of tensor types agrees with the protocol, Triton and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import zoo
from hedgerow_protos import open_inference_pb2
from hedgerow_server.engine.datatypes import DATATYPES, from_onnx


def test_the_numbers_are_those_of_tritons_enum():
    numbers = {
        "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_"): number
        for name, number in open_inference_pb2.DataType.items()
    }
    assert {name: datatype.triton for name, datatype in DATATYPES.items()} == {
        name: number for name, number in numbers.items() if name not in {"INVALID", "BF16"}
    }


@pytest.mark.parametrize("name", DATATYPES)
def test_a_model_of_each_type_is_read_as_that_type_and_takes_its_numpy_form(tmp_path: Path, name: str):
    session = ort.InferenceSession(
        zoo.identity(tmp_path / "m.onnx", name), providers=["CPUExecutionProvider"]
    )
    datatype = from_onnx(session.get_inputs()[0].type)
    assert datatype is DATATYPES[name]
    value = np.array([["a", "é", ""]] if name == "BYTES" else [[0, 1, 1]], datatype.dtype)
    (answer,) = session.run(None, {"x": value})
    assert answer.dtype == datatype.dtype
    assert np.array_equal(answer, value)


def test_the_size_on_the_wire_is_numpys_and_zero_where_elements_vary():
    sizes = {name: datatype.itemsize for name, datatype in DATATYPES.items()}
    assert sizes == {
        "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2,
        "INT32": 4, "INT64": 8, "FP16": 2, "FP32": 4, "FP64": 8, "BYTES": 0,
    }  # fmt: skip


@pytest.mark.parametrize("onnx", ["tensor(bfloat16)", "tensor(complex64)", "tensor(int4)", "float", ""])
def test_what_the_protocol_has_no_name_for_is_none(onnx: str):
    assert from_onnx(onnx) is None
