"""Reading a signature: shapes, batches, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime as ort
import pytest
import zoo
from hedgerow_server.engine.refusal import LoadRefused
from hedgerow_server.engine.signature import Signature, read
from onnx import TensorProto


@dataclass
class Argument:
    """An input or output as ONNX Runtime describes it."""

    name: str
    shape: list[int | str | None]
    type: str = "tensor(float)"


@dataclass
class Session:
    """What `read` asks of a session."""

    inputs: list[Argument]
    outputs: list[Argument] = field(default_factory=lambda: [Argument("y", ["n", 1])])

    def get_inputs(self) -> list[Argument]:
        return self.inputs

    def get_outputs(self) -> list[Argument]:
        return self.outputs


def read_file(path: Path) -> Signature:
    return read(ort.InferenceSession(path, providers=["CPUExecutionProvider"]), max_batch_size=8)


def test_names_types_and_shapes_are_the_models_own_and_minus_one_where_they_vary(tmp_path: Path):
    signature = read_file(zoo.several(tmp_path / "m.onnx"))
    assert [(spec.name, spec.datatype.name, spec.shape) for spec in signature.inputs] == [
        ("a", "FP32", (-1, 2)),
        ("b", "FP32", (-1, 2)),
    ]
    assert [(spec.name, spec.datatype.name) for spec in signature.outputs] == [
        ("sum", "FP32"),
        ("difference", "FP32"),
        ("larger", "BOOL"),
    ]
    assert signature.max_batch_size == 8
    assert read_file(zoo.sequence(tmp_path / "s.onnx")).inputs[0].shape == (-1, -1, 4)


@pytest.mark.parametrize("model", [zoo.no_batch, zoo.scalar, zoo.total])
def test_a_model_without_rows_everywhere_is_never_batched(tmp_path: Path, model: Callable[[Path], Path]):
    assert read_file(model(tmp_path / "m.onnx")).max_batch_size == 0


@pytest.mark.parametrize(
    ("inputs", "outputs", "is_batched"),
    [
        ([["n", 3]], [["n", 1]], True),
        ([[None, 3]], [["n", 1]], True),
        ([["n", 3], [None]], [[None]], True),
        # Exporters that number every dimension: tf2onnx's unk__1, paddle2onnx's p2o.DynamicDimension.1.
        ([["unk__1", 3]], [["unk__2", 1]], True),
        ([["?", 3], ["n", "?"]], [["n"]], True),
        ([[-1, 3]], [["n"]], True),
        ([["n", 3], ["m", 3]], [["n", 1]], False),
        ([["n", "length"]], [["length", 4]], False),
        ([["n", 3]], [["n"], [5]], False),
        ([["n", 3], []], [["n"]], False),
        ([[2, "n"]], [["n"]], False),
        ([], [["n"]], False),
    ],
)
def test_a_batch_is_a_varying_first_dimension_of_one_name(inputs, outputs, is_batched):
    session = Session(
        [Argument(f"x{index}", shape) for index, shape in enumerate(inputs)],
        [Argument(f"y{index}", shape) for index, shape in enumerate(outputs)],
    )
    assert read(session, max_batch_size=4).max_batch_size == (4 if is_batched else 0)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (zoo.zipmap, r"output 'probabilities' is seq\(map.*options=\{id\(model\): \{\"zipmap\": False\}\}"),
        (zoo.sequence_output, r"output 'y' is seq\(tensor.*ConcatFromSequence"),
        (zoo.optional_input, r"input 'x' is optional\(.*plain tensor"),
    ],
)
def test_what_is_no_tensor_is_refused_with_how_to_export_it(tmp_path: Path, model, says: str):
    with pytest.raises(LoadRefused, match=says):
        read_file(model(tmp_path / "m.onnx"))


@pytest.mark.parametrize("element_type", [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT4])
def test_a_type_that_cannot_be_carried_is_refused_with_a_cast(tmp_path: Path, element_type: int):
    with pytest.raises(LoadRefused, match=r"output 'y' is tensor\(.*a Cast node"):
        read_file(zoo.uncarried(tmp_path / "m.onnx", element_type))


@pytest.mark.parametrize(
    ("session", "says"),
    [
        (Session([Argument("x", ["n"])], []), "no output"),
        (Session([Argument("x", ["n"]), Argument("x", ["n"])]), "two inputs are called 'x'"),
        (Session([Argument("", ["n"])]), "an input of the model has no name"),
        (Session([Argument("x", [3], "sparse_tensor(float)")]), "dense"),
    ],
)
def test_names_must_tell_the_tensors_apart(session: Session, says: str):
    with pytest.raises(LoadRefused, match=says):
        read(session, max_batch_size=1)
