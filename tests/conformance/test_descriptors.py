"""Our description of the protocol beside the ones that tritonclient and kserve were generated from.

Each of them is read in a process of its own: both register a package called
`inference` in protobuf's default pool, and only one of them can.
"""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto
from hedgerow_protos import open_inference_pb2
from hedgerow_protos.pool import POOL

OTHERS = {
    "tritonclient": ["tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2"],
    "kserve": ["kserve.protocol.grpc.grpc_predict_v2_pb2"],
}

#: kserve has no repositories and starts with the model's name; Triton's clients are the ones that load.
KSERVE_DIFFERS = {
    ".inference.RepositoryModelLoadRequest.model_name",
    ".inference.RepositoryModelUnloadRequest.model_name",
}
#: In the text of the Open Inference Protocol, in neither package yet.
IN_NEITHER = {
    ".inference.ModelMetadataResponse.properties",
    ".inference.ModelMetadataResponse.PropertiesEntry.key",
    ".inference.ModelMetadataResponse.PropertiesEntry.value",
}

PRINT_FILES = """
import base64, importlib, sys
for name in sys.argv[1:]:
    print(base64.b64encode(importlib.import_module(name).DESCRIPTOR.serialized_pb).decode())
"""


@dataclass
class Wire:
    """What two descriptions must agree on, by full name."""

    #: message.field -> number, type, label, type's name, whether in a oneof.
    fields: dict[str, tuple[object, ...]] = field(default_factory=dict)
    #: enum.value -> number.
    values: dict[str, int] = field(default_factory=dict)
    #: service.method -> request, reply, whether each is a stream.
    methods: dict[str, tuple[object, ...]] = field(default_factory=dict)


def read(files: list[FileDescriptorProto]) -> Wire:
    wire = Wire()
    for file in files:
        for name, message in messages(f".{file.package}", file.message_type):
            for member in message.field:
                # An optional field of proto3 stands in a oneof made up for it.
                choice = member.HasField("oneof_index") and not member.proto3_optional
                wire.fields[f"{name}.{member.name}"] = (
                    member.number,
                    member.type,
                    member.label,
                    member.type_name,
                    choice,
                )
            read_enums(wire, name, message.enum_type)
        read_enums(wire, f".{file.package}", file.enum_type)
        for service in file.service:
            for method in service.method:
                wire.methods[f".{file.package}.{service.name}.{method.name}"] = (
                    method.input_type,
                    method.output_type,
                    method.client_streaming,
                    method.server_streaming,
                )
    return wire


def read_enums(wire: Wire, scope: str, enums: list[EnumDescriptorProto]) -> None:
    for enum in enums:
        for value in enum.value:
            wire.values[f"{scope}.{enum.name}.{value.name}"] = value.number


def messages(scope: str, found: list[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    for message in found:
        name = f"{scope}.{message.name}"
        yield name, message
        yield from messages(name, message.nested_type)


@cache
def ours() -> Wire:
    file = FileDescriptorProto()
    open_inference_pb2.DESCRIPTOR.CopyToProto(file)
    return read([file])


@cache
def theirs(package: str) -> Wire:
    printed = subprocess.run(
        [sys.executable, "-c", PRINT_FILES, *OTHERS[package]],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    ).stdout
    lines = printed.split()
    assert len(lines) == len(OTHERS[package]), printed
    return read([FileDescriptorProto.FromString(base64.b64decode(line)) for line in lines])


@pytest.mark.parametrize("package", OTHERS)
def test_what_both_know_has_the_same_numbers_and_types(package):
    """Fields, enum values and methods."""
    for part in ("fields", "values", "methods"):
        mine, other = getattr(ours(), part), getattr(theirs(package), part)
        names = mine.keys() & other.keys()
        assert names or (package, part) == ("kserve", "values")  # it has no enums
        differ = {name for name in names if mine[name] != other[name]}
        assert differ == (KSERVE_DIFFERS if (package, part) == ("kserve", "fields") else set())


@pytest.mark.parametrize("part", ["fields", "values", "methods"])
def test_whatever_we_have_one_of_them_has(part):
    """A misspelt field would escape the comparison above."""
    known = set(getattr(theirs("tritonclient"), part)) | set(getattr(theirs("kserve"), part))
    assert set(getattr(ours(), part)) - known == (IN_NEITHER if part == "fields" else set())


def test_kserve_finds_every_method_it_has():
    """Triton has more (logs, traces, shared memory), which are not offered."""
    assert theirs("kserve").methods.keys() <= ours().methods.keys()


def test_the_generated_classes_live_in_a_pool_of_their_own():
    """Else the third import of a package called `inference` in a process fails."""
    assert open_inference_pb2.DESCRIPTOR.pool is POOL
