"""What `import hedgerow` brings along and whom it gets on with; each case has its own interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Both register the protobuf package `inference` in the default pool.
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("tritonclient.grpc", "tritonclient.grpc.service_pb2.ModelInferRequest"),
        ("kserve", "kserve.protocol.grpc.grpc_predict_v2_pb2.ModelInferRequest"),
    ],
)
@pytest.mark.parametrize("ours_first", [True, False])
def test_hedgerow_can_be_imported_beside(other, message, ours_first):
    """In either order, and the bytes of one are a message of the other."""
    imports = ["import hedgerow", f"import {other}"]
    lines = imports if ours_first else imports[::-1]
    module, _, name = message.rpartition(".")
    lines += [
        f"import numpy, {module} as theirs",
        "from hedgerow.infer_request import InferRequest",
        "ours = InferRequest('m', {'x': numpy.ones((1, 2), numpy.float32)}).message({})",
        f"read = theirs.{name}.FromString(ours.SerializeToString())",
        "print(read.model_name, read.inputs[0].datatype, list(read.inputs[0].shape))",
    ]
    assert run("\n".join(lines)) == "m FP32 [1, 2]"


def test_import_is_light():
    heavy = "{'mlflow', 'onnx', 'onnxruntime', 'rich', 'cyclopts', 'yaml', 'pandas', 'fastapi', 'pydantic'}"
    assert run(f"import sys, hedgerow; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_publish_is_there_and_loads_mlflow_only_when_called():
    code = "import sys, hedgerow; assert callable(hedgerow.publish); print('mlflow' in sys.modules)"
    assert run(code) == "False"


def test_every_public_name_exists():
    assert run("import hedgerow; [getattr(hedgerow, name) for name in hedgerow.__all__]") == ""
    assert "no attribute 'nope'" in run(
        "import hedgerow\ntry: hedgerow.nope\nexcept AttributeError as error: print(error)"
    )


def test_publishing_without_its_extra_says_what_to_install():
    """As in an environment that has only the base install."""
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "import hedgerow\n"
        "try: hedgerow.publish(b'', 'm')\n"
        "except hedgerow.HedgerowError as error: print(error.details)"
    )
    assert run(code) == "publishing needs the package onnx: pip install 'hedgerow[publish]'"
