"""serving.yaml, the file beside model.onnx: text to `ServingSpec` and back.

The fields are those of the message in hedgerow_control.proto; `yaml_message`
says how they are written. What the message does not have is refused by name.
"""

from __future__ import annotations

from hedgerow_protos import yaml_message
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_protos.yaml_message import MAX_BYTES, SpecError

__all__ = ["MAX_BYTES", "SpecError", "dump", "parse"]


def parse(text: str, *, source: str) -> ServingSpec:
    """Reads a serving.yaml; an empty one means every default.

    Args:
        text: YAML, at most 1 MiB.
        source: what to call it in an error, such as the path.

    Raises:
        SpecError: not YAML, an unknown key, or a value of the wrong type.
    """
    spec = ServingSpec()
    value = yaml_message.load(text, source=source)
    if value is not None:
        yaml_message.fill(spec, value, source=source)
    return spec


def dump(spec: ServingSpec) -> str:
    """Writes a spec as YAML that `parse` reads back to an equal one; defaults are left out."""
    return yaml_message.dump(yaml_message.plain(spec)) if spec.ListFields() else ""
