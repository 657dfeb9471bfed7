"""YAML text to protobuf messages and back, strictly: what people write for Hedgerow is read here.

Keys are a message's fields written either way (`maxBatchSize` or `max_batch_size`);
enum values by their last word (`reject`). What a message does not have is refused
by name. Three things have a shorter form in YAML than in the message: spans of time
(`60s`, `5m`, `1h`, `7d`; a plain number is seconds), a feature's default
(`150`, `unknown`, `[0, 0]`), and expressions that are values (`0.5`, `true`, `[0.1, 0.9]`).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from hedgerow_protos.hedgerow_control_pb2 import FallbackRule, FeatureDefault, FeatureView
from hedgerow_protos.pool import POOL

MAX_BYTES = 1 << 20

# Messages and descriptors are `Any` below: protobuf has two implementations, and its stubs do not unite
# their types.

_SPANS = frozenset(f"{FeatureView.DESCRIPTOR.full_name}.{name}" for name in ("ttl", "stale_ttl", "max_age"))
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)(ms|s|m|h|d)")
_DEFAULT_NUMBERS = f"{FeatureDefault.DESCRIPTOR.full_name}.numbers"
_EXPRESSIONS = frozenset(
    (f"{FallbackRule.DESCRIPTOR.full_name}.when", f"{FallbackRule.DESCRIPTOR.full_name}.OutputsEntry.value")
)
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class SpecError(ValueError):
    """A file that cannot be read; the message names the file, the place and the right form."""


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


#: Line breaks besides the newline. PyYAML writes them as they are, and reads them as others or spaces.
_ODD_BREAKS = frozenset("\r\x85\u2028\u2029")


class _Dumper(yaml.SafeDumper):
    """Writes what stands in two places twice: `load` takes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """As PyYAML does, but in the style that escapes odd line breaks where there are any."""
        style = None if _ODD_BREAKS.isdisjoint(data) else '"'
        node: yaml.ScalarNode = self.represent_scalar("tag:yaml.org,2002:str", data, style=style)
        return node


_Dumper.add_representer(str, _Dumper.represent_str)


def load(text: str, *, source: str) -> object:
    """Reads YAML into plain values.

    Args:
        text: At most 1 MiB.
        source: What to call it in an error, such as the path.

    Raises:
        SpecError: Too long, or not YAML.
    """
    if len(text) > MAX_BYTES:
        raise SpecError(f"{source}: {len(text)} characters; expected at most {MAX_BYTES}")
    try:
        # _Loader is a SafeLoader: it builds plain values only.
        return yaml.load(text, _Loader)  # noqa: S506
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SpecError(f"{source}: not valid YAML: {error}") from None


def fill(message: Any, value: object, *, source: str, place: str = "") -> None:
    """Fills an empty message from what `load` returned.

    Args:
        message: Of any type.
        value: The mapping with its fields.
        source: The file, for errors.
        place: Where in the file `value` stands, for errors.

    Raises:
        SpecError: An unknown key, or a value of the wrong type.
    """
    plain_value = _message(value, message.DESCRIPTOR, source, place)
    try:
        json_format.ParseDict(plain_value, message, descriptor_pool=POOL)
    except json_format.ParseError as error:
        raise SpecError(f"{source}: {error}") from None


def dump(value: object) -> str:
    """Writes plain values, such as those of `plain`, as YAML that `load` reads back.

    Raises:
        yaml.YAMLError: They hold something else.
        RecursionError: They hold themselves.
    """
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def plain(message: Any) -> dict[str, object]:
    """A message as plain values that `fill` reads back to an equal one; defaults are left out."""
    result: dict[str, object] = {}
    for field, value in message.ListFields():
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            nested = entry.fields_by_name["value"].message_type is not None
            result[field.name] = {key: plain(value[key]) if nested else value[key] for key in sorted(value)}
        elif entry is not None:
            result[field.name] = [_short(item) for item in value] if field.is_repeated else _short(value)
        elif field.enum_type is not None:
            short = {full: name for name, full in _choices(field.enum_type).items()}
            result[field.name] = short[field.enum_type.values_by_number[value].name]
        elif field.full_name in _SPANS:
            result[field.name] = f"{value:.0f}s" if value.is_integer() else value
        else:
            result[field.name] = list(value) if field.is_repeated else value
    return result


def _short(message: Any) -> object:
    """A feature's default as people write it; every other message as a mapping."""
    value = plain(message)
    if message.DESCRIPTOR.full_name == FeatureDefault.DESCRIPTOR.full_name and len(value) == 1:
        (values,) = value.values()
        assert isinstance(values, list)
        return values[0] if len(values) == 1 else values
    return value


def _message(value: object, descriptor: Any, source: str, place: str) -> dict[str, object]:
    if descriptor.full_name == FeatureDefault.DESCRIPTOR.full_name and not isinstance(value, dict):
        value = _default(value, source, place)
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
    if field.full_name in _SPANS and isinstance(value, str):
        return _span(value, source, place)
    if field.full_name in _EXPRESSIONS:
        return _expression(value, source, place)
    # ParseDict would take "8" for 8 and true for 1; a file should mean what it looks like.
    wanted, types = {
        FieldDescriptor.CPPTYPE_STRING: ("text", (str,)),
        FieldDescriptor.CPPTYPE_BOOL: ("true or false", (bool,)),
        FieldDescriptor.CPPTYPE_DOUBLE: ("a number", (int, float)),
        FieldDescriptor.CPPTYPE_FLOAT: ("a number", (int, float)),
    }.get(field.cpp_type, ("a whole number", (int,)))
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise SpecError(f"{source}: {place} is {_kind(value)}; expected {wanted}")
    if field.full_name == _DEFAULT_NUMBERS and isinstance(value, float) and not math.isfinite(value):
        return _NOT_FINITE[str(value)]  # as protobuf's JSON writes them
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


def _span(text: str, source: str, place: str) -> float:
    found = _SPAN.fullmatch(text)
    if found is None:
        raise SpecError(f"{source}: {place} is {text!r}; expected a span of time such as 60s, 5m, 1h or 7d")
    return float(found[1]) * _SECONDS[found[2]]


def _expression(value: object, source: str, place: str, *, point: bool = False) -> str:
    """A CEL expression, from its text or from the value that it stands for.

    Args:
        value: As YAML has it.
        source: The file, for errors.
        place: Where in it.
        point: Whole numbers are written with a point, as others beside them have one.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value}.0" if point else str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, list):
        point = point or any(isinstance(item, float) for item in _leaves(value))
        return f"[{', '.join(_expression(item, source, place, point=point) for item in value)}]"
    raise SpecError(
        f"{source}: {place} is {_kind(value)}; expected an expression, in quotes, or a finite value"
    )


def _leaves(values: list[Any]) -> Iterator[object]:
    for value in values:
        if isinstance(value, list):
            yield from _leaves(value)
        else:
            yield value


def _default(value: object, source: str, place: str) -> dict[str, object]:
    """`FeatureDefault`'s own fields, from a plain value or a list of them."""
    values: list[Any] = value if isinstance(value, list) else [value]
    if values and all(isinstance(item, str) for item in values):
        return {"strings": values}
    if values and all(isinstance(item, int) for item in values):  # True and False too
        return {"integers": [int(item) for item in values]}
    if values and all(isinstance(item, int | float) for item in values):
        return {"numbers": values}
    raise SpecError(
        f"{source}: {place} is {_kind(value)}; expected a number, text, true or false, or a list of those"
    )
