"""serving.yaml, the file beside model.onnx: text to `ServingSpec` and back.

The fields are those of the message in hedgerow_control.proto, written either
way (`maxBatchSize` or `max_batch_size`); enum values by their last word
(`reject`). What the message does not have is refused by name.
"""

from __future__ import annotations

import difflib
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_protos.pool import POOL

MAX_BYTES = 1 << 20

# Descriptors are `Any` below: protobuf has two implementations, and its stubs do not unite their types.


class SpecError(ValueError):
    """A serving.yaml that cannot be read; the message names the file, the place and the right form."""


class _Loader(yaml.SafeLoader):
    """YAML without what hides mistakes (a key twice) or grows without bound (aliases)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases are not supported", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be plain text", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def parse(text: str, *, source: str) -> ServingSpec:
    """Reads a serving.yaml; an empty one means every default.

    Args:
        text: YAML, at most 1 MiB.
        source: what to call it in an error, such as the path.

    Raises:
        SpecError: not YAML, an unknown key, or a value of the wrong type.
    """
    if len(text) > MAX_BYTES:
        raise SpecError(f"{source}: {len(text)} characters; expected at most {MAX_BYTES}")
    try:
        # _Loader is a SafeLoader: it builds plain values only.
        value = yaml.load(text, _Loader)  # noqa: S506
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SpecError(f"{source}: not valid YAML: {error}") from None
    spec = ServingSpec()
    plain = {} if value is None else _message(value, ServingSpec.DESCRIPTOR, source, "")
    try:
        json_format.ParseDict(plain, spec, descriptor_pool=POOL)
    except json_format.ParseError as error:
        raise SpecError(f"{source}: {error}") from None
    return spec


def dump(spec: ServingSpec) -> str:
    """Writes a spec as YAML that `parse` reads back to an equal one; defaults are left out."""
    return yaml.safe_dump(_plain(spec), sort_keys=False, allow_unicode=True) if spec.ListFields() else ""


def _message(value: object, descriptor: Any, source: str, place: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise SpecError(f"{source}: {place or 'the file'} is {_kind(value)}; expected keys and values")
    fields = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
    result: dict[str, object] = {}
    for key, item in value.items():
        here = f"{place}.{key}" if place else str(key)
        field = fields.get(key) if isinstance(key, str) else None
        if field is None:
            known = [field.name for field in descriptor.fields]
            close = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            hint = f"did you mean {fields[close[0]].name!r}?" if close else f"known here: {', '.join(known)}"
            raise SpecError(f"{source}: unknown key {here!r}; {hint}")
        if field.name in result:
            raise SpecError(f"{source}: {here!r} is there twice, once in each spelling")
        if item is not None:  # `warmup:` with nothing behind it is the default
            result[field.name] = _field(item, field, source, here)
    return result


def _field(value: object, field: Any, source: str, place: str) -> object:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        if not isinstance(value, dict):
            raise SpecError(f"{source}: {place} is {_kind(value)}; expected keys and values")
        of = entry.fields_by_name["value"]
        return {str(key): _field(item, of, source, f"{place}.{key}") for key, item in value.items()}
    if field.is_repeated:
        if not isinstance(value, list):
            raise SpecError(f"{source}: {place} is {_kind(value)}; expected a list")
        return [_one(item, field, source, f"{place}[{index}]") for index, item in enumerate(value)]
    return _one(value, field, source, place)


def _one(value: object, field: Any, source: str, place: str) -> object:
    if field.message_type is not None:
        return _message(value, field.message_type, source, place)
    if field.enum_type is not None:
        names = _choices(field.enum_type)
        if isinstance(value, str) and (value.lower() in names or value in names.values()):
            return names.get(value.lower(), value)
        raise SpecError(f"{source}: {place} is {value!r}; expected one of {', '.join(names)}")
    # ParseDict would take "8" for 8 and true for 1; a file should mean what it looks like.
    wanted, types = {
        FieldDescriptor.CPPTYPE_STRING: ("text", (str,)),
        FieldDescriptor.CPPTYPE_BOOL: ("true or false", (bool,)),
        FieldDescriptor.CPPTYPE_DOUBLE: ("a number", (int, float)),
        FieldDescriptor.CPPTYPE_FLOAT: ("a number", (int, float)),
    }.get(field.cpp_type, ("a whole number", (int,)))
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise SpecError(f"{source}: {place} is {_kind(value)}; expected {wanted}")
    return value


def _choices(enum: Any) -> dict[str, str]:
    """Short name to full name, without the zero value: NAN_CHOICE_REJECT is `reject`."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix).lower(): value.name for value in enum.values if value.number}


def _kind(value: object) -> str:
    names = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "empty" if value is None else names.get(type(value), type(value).__name__)


def _plain(message: Any) -> dict[str, object]:
    result: dict[str, object] = {}
    for field, value in message.ListFields():
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            result[field.name] = {key: _plain(value[key]) for key in sorted(value)}
        elif entry is not None:
            result[field.name] = _plain(value)
        elif field.enum_type is not None:
            short = {full: name for name, full in _choices(field.enum_type).items()}
            result[field.name] = short[field.enum_type.values_by_number[value].name]
        else:
            result[field.name] = list(value) if field.is_repeated else value
    return result
