"""Weights moved out of a model's file: the model stays the same, whatever the file looks like."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo
from hedgerow_control.artifacts import externalize as externalizing
from hedgerow_control.artifacts.externalize import externalize
from hedgerow_control.artifacts.fetch import Limits, fetch
from hedgerow_protos import manifest
from hedgerow_server.engine import gears
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small weights are worth it too."""
    monkeypatch.setattr(externalizing, "WORTH_BYTES", 1 << 12)


def embedded(path: Path, mebibytes: int = 5) -> Path:
    """A model y = x * w with its weights inside: x FP32 [batch, 64]."""
    values = np.random.default_rng(0).standard_normal((64, mebibytes * 4096)).astype(np.float32)
    return zoo.save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [zoo.tensor("x", ["batch", 64])],
        [zoo.tensor("y", ["batch", mebibytes * 4096])],
        {"w": values},
    )


def test_a_large_model_becomes_two_files_that_servers_map(tmp_path: Path):
    original = onnx.load(embedded(tmp_path / "model.onnx"))
    assert externalize(tmp_path, "model.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.weights"}
    assert (tmp_path / "model.onnx").stat().st_size < 4096
    assert (tmp_path / "model.onnx.weights").stat().st_size >= gears.PAYS_BYTES
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    moved = onnx.load(tmp_path / "model.onnx")
    np.testing.assert_array_equal(
        *(numpy_helper.to_array(model.graph.initializer[0]) for model in (original, moved))
    )


def test_it_is_done_once_and_always_alike(tmp_path: Path):
    for folder in ("one", "two"):
        embedded(tmp_path / folder / "model.onnx")
        assert externalize(tmp_path / folder, "model.onnx")
        assert not externalize(tmp_path / folder, "model.onnx")
    assert manifest.scan(tmp_path / "one") == manifest.scan(tmp_path / "two")


def test_memory_does_not_grow_with_the_model(tmp_path: Path):
    embedded(tmp_path / "model.onnx", mebibytes=24)
    tracemalloc.start()
    try:
        assert externalize(tmp_path, "model.onnx")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 << 20


@pytest.mark.parametrize("build", [zoo.mlp, zoo.external, zoo.truncated, zoo.lookup])
def test_what_is_small_external_already_or_broken_is_left_alone(tmp_path: Path, build):
    build(tmp_path / "model.onnx")
    before = manifest.scan(tmp_path)
    assert not externalize(tmp_path, "model.onnx")
    assert manifest.scan(tmp_path) == before


@pytest.mark.usefixtures("worth")
def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    embedded(tmp_path / "model.onnx", mebibytes=1)
    before = manifest.scan(tmp_path)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(externalizing, "_write_model", full)
    with pytest.raises(OSError, match="no space"):
        externalize(tmp_path, "model.onnx")
    assert manifest.scan(tmp_path) == before


tensors = st.tuples(
    st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int8, np.bool_]),
    st.integers(0, 5000),
    st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(layout=st.lists(tensors, min_size=1, max_size=6), extra=st.binary(max_size=300))
def test_every_tensor_keeps_its_value_and_all_else_stays(tmp_path_factory, layout, extra):
    """Raw or typed, large or small, of any type; the file's other fields come through unchanged."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    source = np.random.default_rng(len(extra))
    initializers = []
    for number, (dtype, size, is_raw) in enumerate(layout):
        values = source.integers(0, 2, size).astype(dtype)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        if is_raw or dtype is np.float16:
            initializers.append(numpy_helper.from_array(values, f"w{number}"))
        else:
            initializers.append(helper.make_tensor(f"w{number}", kind, values.shape, values.tolist()))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [zoo.tensor("x", [1])],
        [zoo.tensor("y", [1])],
        initializers,
        doc_string=extra.hex(),
    )
    original = helper.make_model(graph, producer_name=extra.hex())
    path.write_bytes(original.SerializeToString())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(externalizing, "WORTH_BYTES", 1)
        changed = externalize(path.parent, path.name)
    moved = onnx.load(path, load_external_data=False)
    outside = [tensor for tensor in moved.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    assert changed == bool(outside)
    onnx.load_external_data_for_model(moved, str(path.parent))
    for before, after in zip(original.graph.initializer, moved.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(before), numpy_helper.to_array(after))
        assert before.name == after.name
    for model in (original, moved):
        del model.graph.initializer[:]
    assert original == moved


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_file_is_never_damaged_further(tmp_path_factory, place, byte):
    """Whatever one byte says: the weights stay readable as they were, or the file stays as it was."""
    path = embedded(tmp_path_factory.mktemp("model") / "model.onnx", mebibytes=1)
    content = bytearray(path.read_bytes())
    # Near its begin or end, where everything but weights is.
    content[place % 200 if place % 2 else -1 - place % 200] = byte
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(externalizing, "WORTH_BYTES", 1)
        if externalize(path.parent, path.name):
            weights = path.with_name("model.onnx.weights").read_bytes()
            assert weights.rstrip(b"\0") in bytes(content)
        else:
            assert path.read_bytes() == content


class Store:
    """An artifact store with one embedded model."""

    def list(self, path):
        return [("model.onnx", False, 0)]

    def download(self, path, directory):
        embedded(directory / path)


def test_a_fetched_version_is_served_rewritten_and_keeps_its_first_digest(tmp_path: Path):
    (tmp_path / "target").mkdir()
    (tmp_path / "plain").mkdir()
    embedded(tmp_path / "plain" / "model.onnx")
    version = fetch(Store, tmp_path / "target", Limits(max_bytes=1 << 30, max_files=8))
    assert [file.path for file in version.files] == ["model.onnx", "model.onnx.weights"]
    assert version.digest == manifest.digest(manifest.scan(tmp_path / "target"))
    assert version.source_digest == manifest.digest(manifest.scan(tmp_path / "plain"))
