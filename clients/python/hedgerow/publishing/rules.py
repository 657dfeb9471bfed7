"""The fallback rules of a serving.yaml, compiled against the model as servers will."""

from __future__ import annotations

import onnx
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_protos.rules import RuleError, compile_rules

from hedgerow.errors import FailedPrecondition, ModelRefused
from hedgerow.publishing import shapes


def check(serving: ServingSpec, proto: onnx.ModelProto, *, source: str) -> None:
    """Checks that the rules name what the model has, and give what it gives.

    Args:
        serving: Its features fit the model.
        proto: The model.
        source: The serving.yaml, for errors.

    Raises:
        ModelRefused: They do not; the message says which rule, what is wrong and what is expected.
    """
    if not serving.fallback.rules:
        return
    graph = proto.graph
    if unranked := shapes.unranked_outputs(graph):
        raise ModelRefused(
            f"{source}: fallback.rules: the model does not say what shape its output {unranked[0]!r} has, and"
            " rules must give it; export it with shapes, or run onnx.shape_inference.infer_shapes on it"
        )
    try:
        compile_rules(
            serving,
            shapes.input_shapes(graph),
            shapes.output_shapes(graph),
            batched=shapes.has_batch(graph),
        )
    except RuleError as error:
        raise ModelRefused(f"{source}: {error}") from error
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"checking fallback rules needs the package {error.name}: pip install 'hedgerow[publish]'"
        ) from error
