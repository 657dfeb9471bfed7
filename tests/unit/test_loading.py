"""Loading: what becomes of good models, and what is said of bad ones."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo
from google.protobuf import json_format
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec, Warmup
from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.loading import LoadedModel, LoadRefused, OutOfMemory, load
from hedgerow_server.engine.memory import give_back
from hedgerow_server.engine.signature import Signature, TensorSpec
from hedgerow_server.engine.warmup import warm


def load_file(path: Path, serving: dict | None = None, **options) -> LoadedModel:
    spec = json_format.ParseDict(serving or {}, ServingSpec())
    return load(path.parent, path.name, spec, **options)


def warmup(**inputs: dict) -> dict:
    return {"warmup": {"inputs": inputs}}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_type_loads_and_is_batched(tmp_path: Path, datatype: str):
    model = load_file(zoo.identity(tmp_path / "m.onnx", datatype), default_max_batch_size=7)
    assert model.signature.max_batch_size == 7
    assert model.row_independent


@pytest.mark.parametrize(
    ("build", "max_batch_size", "row_independent"),
    [
        (zoo.mlp, 128, True),
        (zoo.several, 128, True),
        (zoo.sequence, 128, True),
        (zoo.lookup, 128, True),
        (zoo.logarithm, 128, True),
        (zoo.external, 128, True),
        (zoo.batch_mean, 128, False),
        (zoo.running_sum, 128, False),
        (zoo.quantized, 128, False),
        (zoo.no_batch, 0, False),
        (zoo.scalar, 0, False),
        (zoo.total, 0, False),
    ],
)
def test_rows_share_a_run_only_where_they_do_not_depend_on_each_other(
    tmp_path: Path, build, max_batch_size, row_independent
):
    model = load_file(build(tmp_path / "m.onnx"))
    assert (model.signature.max_batch_size, model.row_independent) == (max_batch_size, row_independent)


def test_rows_that_depend_on_how_many_there_are_do_not_share_a_run(tmp_path: Path):
    """Other companions change nothing here; only the run alone shows it."""
    path = zoo.save(
        tmp_path / "m.onnx",
        [
            onnx.helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
            onnx.helper.make_node("Cast", ["rows"], ["count"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Div", ["x", "count"], ["y"]),
        ],
        [zoo.tensor("x", ["batch", 2])],
        [zoo.tensor("y", ["batch", 2])],
    )
    assert not load_file(path).row_independent


def test_rows_that_do_not_follow_the_inputs_are_no_batch(tmp_path: Path):
    """A model may declare any name for its first dimension; what it answers counts."""
    path = zoo.save(
        tmp_path / "m.onnx",
        [onnx.helper.make_node("Concat", ["x", "x"], ["y"], axis=0)],
        [zoo.tensor("x", ["batch", 2])],
        [zoo.tensor("y", ["more", 2])],
    )
    assert load_file(path).signature.max_batch_size == 0


def test_an_output_without_a_declared_shape_gets_the_rank_it_answers_with(tmp_path: Path):
    path = zoo.save(
        tmp_path / "m.onnx",
        [onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [zoo.tensor("x", [4]), zoo.tensor("shape", ["rank"], onnx.TensorProto.INT64)],
        [zoo.tensor("y", None)],
    )
    sample = warmup(shape={"shape": [3], "values": [2, 1, 2]})
    assert load_file(path, sample).signature.outputs[0].shape == (-1, -1, -1)


def test_the_serving_spec_sets_the_batch_and_mapped_sessions_answer_the_same(tmp_path: Path):
    path = zoo.external(tmp_path / "m.onnx", "data/weights.bin")
    ordinary = load_file(path, {"batching": {"max_batch_size": 3}, "session": {"intra_op_threads": 2}})
    mapped = load_file(path, mapped=True)  # too small: packed at once
    assert ordinary.signature.max_batch_size == 3
    x = np.ones((2, 64), np.float32)
    np.testing.assert_allclose(
        ordinary.session.run(None, {"x": x})[0], mapped.session.run(None, {"x": x})[0], rtol=1e-5
    )
    options = mapped.session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 1


def test_small_models_of_fixed_sizes_have_no_arena_of_their_own(tmp_path: Path):
    """Whose runs may be large keeps one, whether its file or what it is asked for is large."""
    small = load_file(zoo.mlp(tmp_path / "small.onnx"))
    varying = load_file(zoo.identity(tmp_path / "varying.onnx", dims=("batch", "n")))
    large = load_file(zoo.external(tmp_path / "large.onnx", mebibytes=2))
    assert [
        loaded.session.get_session_options().enable_cpu_mem_arena for loaded in (small, varying, large)
    ] == [False, True, True]


def test_a_sample_from_the_serving_spec_is_used(tmp_path: Path):
    """Zeros pass, the sample does not: so it was the sample that ran."""
    path = zoo.lookup(tmp_path / "m.onnx", rows=10)
    assert load_file(path, warmup(index={"shape": [2], "values": [3, 9]})).row_independent
    with pytest.raises(LoadRefused, match=r"failed on its warm-up sample \(index int64\[1\]\).*out of"):
        load_file(path, warmup(index={"values": [10]}))


def test_sizes_of_varying_dimensions_are_tried_until_the_model_answers(tmp_path: Path):
    """A convolution wider than the smallest sample, as audio and vision models have."""
    path = zoo.save(
        tmp_path / "m.onnx",
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"])],
        [zoo.tensor("x", ["batch", 1, "length"])],
        [zoo.tensor("y", ["batch", 1, "frames"])],
        {"w": np.ones((1, 1, 48), np.float32)},
    )
    assert load_file(path).row_independent


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        ({"z": {"values": [1]}}, "names the input 'z'.*its inputs are a, b"),
        ({"a": {"shape": [2, 3], "values": [1]}}, r"'a' has shape \[2, 3\], the model takes \[-1, 2\]"),
        ({"a": {"shape": [2]}}, r"'a' has shape \[2\]"),
        ({"a": {"shape": [0, 2]}}, r"'a' has shape \[0, 2\]"),
        ({"a": {"shape": [2, 2], "values": [1, 2, 3]}}, "has 3 values.*holds 4"),
        ({"a": {"strings": ["x"]}}, "is FP32; give values, not strings"),
        ({"a": {"shape": [1, 2]}, "b": {"shape": [2, 2]}}, r"different numbers of rows: \[1, 2\]"),
        ({"a": {"shape": [1 << 40, 2]}}, "at most"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(tmp_path: Path, sample: dict, says: str):
    with pytest.raises(LoadRefused, match=says):
        load_file(zoo.several(tmp_path / "m.onnx"), warmup(**sample))


@pytest.mark.parametrize(
    ("datatype", "values"), [("UINT8", [256]), ("INT8", [-129]), ("INT64", [0.5]), ("BOOL", [2])]
)
def test_a_sample_value_outside_its_type_is_refused(tmp_path: Path, datatype: str, values: list[float]):
    path = zoo.identity(tmp_path / "m.onnx", datatype)
    with pytest.raises(LoadRefused, match=f"values that are no {datatype}"):
        load_file(path, warmup(x={"values": values}))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (zoo.truncated, r"'m.onnx' \(\d+ bytes\) is truncated or no ONNX file"),
        (zoo.custom_operator, "operator com.example:Sparkle.*custom operator libraries are never loaded"),
        (zoo.future_opset, r"needs opset 999 of ai.onnx.*export it with opset \d+ or lower"),
        (zoo.unknown_rank, "input 'x' does not give its shape"),
        (zoo.zipmap, "zipmap"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_with_what_to_do(tmp_path: Path, build, says: str):
    with pytest.raises(LoadRefused, match=says):
        load_file(build(tmp_path / "m.onnx"))


def test_a_file_format_from_the_future_is_refused(tmp_path: Path):
    path = zoo.mlp(tmp_path / "m.onnx")
    proto = onnx.load(path)
    proto.ir_version = 999
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(LoadRefused, match=r"IR version 999.*reads up to \d+"):
        load_file(path)


def test_an_operator_without_a_kernel_is_refused_with_the_types_to_use(tmp_path: Path):
    """BF16 inside a model is as impossible on this CPU build as at its edge."""
    path = zoo.save(
        tmp_path / "m.onnx",
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        [zoo.tensor("x", [2], onnx.TensorProto.BFLOAT16)],
        [zoo.tensor("y", [2], onnx.TensorProto.BFLOAT16)],
    )
    with pytest.raises(LoadRefused, match=r"no CPU kernel for operator Add.*export in FP32 or FP16"):
        load_file(path)


def test_a_slip_in_the_number_of_threads_is_refused(tmp_path: Path):
    with pytest.raises(LoadRefused, match="intraOpThreads is 4000000000"):
        load_file(zoo.mlp(tmp_path / "m.onnx"), {"session": {"intra_op_threads": 4_000_000_000}})


@pytest.mark.parametrize(
    ("after_ms", "fits"),
    [
        (0, True),
        (0.5, True),
        (60_000, True),
        ("NaN", False),
        ("Infinity", False),
        (-1, False),
        (60_001, False),
    ],
)
def test_a_delay_of_hedges_that_nobody_can_have_meant_is_refused(tmp_path: Path, after_ms: float | str, fits):
    """Not a number would break the timers of every request of the model."""
    path, serving = zoo.mlp(tmp_path / "m.onnx"), {"hedging": {"after_ms": after_ms}}
    if fits:
        load_file(path, serving)
        return
    with pytest.raises(LoadRefused, match=r"hedging\.after_ms is .*; it is milliseconds, at most 60000"):
        load_file(path, serving)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x80\x04\x95 a pickle", "no ONNX file"),
        (b"\x08\x08", "no ONNX file"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "no ONNX file"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes, says: str):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadRefused, match=says):
        load_file(path)


def test_every_cut_of_a_model_is_refused_or_loads_never_crashes(tmp_path: Path):
    path = zoo.several(tmp_path / "m.onnx")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            load_file(path)
        except LoadRefused as refused:
            assert str(refused)  # noqa: PT017  (both endings are right)


@pytest.mark.parametrize(
    "path", ["", "../m.onnx", "/etc/passwd", "a/../../m.onnx", "m\0.onnx", "missing.onnx", "."]
)
def test_the_models_path_stays_in_its_folder_and_names_a_file(tmp_path: Path, path: str):
    zoo.mlp(tmp_path / "m.onnx")
    (tmp_path / "inner").mkdir()
    with pytest.raises(LoadRefused, match="model"):
        load(tmp_path / "inner", path, ServingSpec())


# External data.


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("missing.bin", "cannot be read .*copy it together with the model"),
        ("../weights.bin", "outside the model's folder"),
        ("/etc/passwd", "not a relative path"),
        ("", "not a relative path"),
        (".", "not a relative path"),
        ("folder", "not a regular file"),
        ("a\0b", "not a relative path"),
    ],
)
def test_external_data_must_be_a_file_beside_the_model(tmp_path: Path, location: str, says: str):
    (tmp_path / "model" / "folder").mkdir(parents=True)
    (tmp_path / "weights.bin").write_bytes(bytes(16384))
    path = zoo.external(tmp_path / "model" / "m.onnx", location, write=False)
    with pytest.raises(LoadRefused, match=says):
        load_file(path)


def test_external_data_that_is_a_hard_link_is_refused(tmp_path: Path):
    """ONNX Runtime reads a hard link, which may be another name of any file."""
    path = zoo.external(tmp_path / "m.onnx")
    os.link(tmp_path / "weights.bin", tmp_path / "elsewhere.bin")
    with pytest.raises(LoadRefused, match=r"hard link \(the file has 2 names\)"):
        load_file(path)
    (tmp_path / "elsewhere.bin").unlink()
    assert load_file(path)


@pytest.mark.parametrize("location", ["link.bin", "folder/weights.bin"])
def test_external_data_behind_a_symbolic_link_is_refused(tmp_path: Path, location: str):
    """ONNX Runtime follows links that stay inside the folder; who may write there could turn them later."""
    path = zoo.external(tmp_path / "m.onnx", location, write=False)
    zoo.external(tmp_path / "real" / "m.onnx")
    (tmp_path / "link.bin").symlink_to("real/weights.bin")
    (tmp_path / "folder").symlink_to("real")
    with pytest.raises(LoadRefused, match="symbolic link"):
        load_file(path)


def test_external_data_that_is_too_short_is_refused(tmp_path: Path):
    path = zoo.external(tmp_path / "m.onnx")
    os.truncate(tmp_path / "weights.bin", 100)
    with pytest.raises(LoadRefused, match=r"external data does not hold.*copy it again, whole"):
        load_file(path)


def test_external_data_of_a_constant_deep_inside_is_checked_too(tmp_path: Path):
    """Weights may hang on a node in a graph inside a node; of those, too, ONNX Runtime reads hard links."""
    zoo.external(tmp_path / "m.onnx")
    os.link(tmp_path / "weights.bin", tmp_path / "elsewhere.bin")
    (weights,) = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    weights.name = "inner"
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Constant", [], ["value"], value=weights)],
        "branch",
        [],
        [zoo.tensor("value", [64, 64])],
    )
    path = zoo.save(
        tmp_path / "deep.onnx",
        [onnx.helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)],
        [zoo.tensor("yes", [], onnx.TensorProto.BOOL)],
        [zoo.tensor("y", [64, 64])],
    )
    with pytest.raises(LoadRefused, match=r"'weights.bin' is a hard link"):
        load_file(path)


# Time and memory.


def test_a_loop_is_found_wherever_it_is(tmp_path: Path):
    """Also in a branch; and a node that is only called so is none."""
    assert load_file(zoo.hangs(tmp_path / "loop.onnx")).loops
    assert not load_file(zoo.several(tmp_path / "none.onnx")).loops
    named = onnx.load(zoo.identity(tmp_path / "named.onnx"))
    named.graph.node[0].name = "Loop"
    onnx.save(named, tmp_path / "named.onnx")
    assert not load_file(tmp_path / "named.onnx").loops
    looping = onnx.load(tmp_path / "loop.onnx").graph
    looping.name = "branch"
    del looping.input[:]
    branched = zoo.save(
        tmp_path / "branched.onnx",
        [onnx.helper.make_node("If", ["yes"], ["y"], then_branch=looping, else_branch=looping)],
        [zoo.tensor("x", ["batch", 1])],
        [zoo.tensor("y", ["batch", 1])],
        {"yes": np.array(True)},
    )
    assert load_file(branched).loops


def test_a_model_that_never_returns_is_stopped_and_leaves_no_thread(tmp_path: Path):
    before = threading.active_count()
    with pytest.raises(LoadRefused, match=r"did not answer its warm-up sample within 0.2 s"):
        load_file(zoo.never_returns(tmp_path / "m.onnx"), warmup_timeout=0.2)
    assert threading.active_count() == before


class AnswersOnce:
    """A session that answers its first run and then computes until it is terminated."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, _names, feeds, options):
        self.runs += 1
        if self.runs > 1:
            while not options.terminate:
                time.sleep(0.001)
            raise RuntimeError("Exiting due to terminate flag being set to true")
        return [feeds["x"]]


def test_a_model_too_slow_for_the_check_of_its_rows_is_served_one_request_a_run():
    """That it answered is enough to serve it; what was not seen is not believed."""
    spec = TensorSpec("x", DATATYPES["FP32"], (-1, 2))
    warmed = warm(AnswersOnce(), Signature((spec,), (spec,), 16), Warmup(), 1.0)
    assert warmed.signature.max_batch_size == 16
    assert not warmed.row_independent


def test_a_model_that_asks_for_too_much_memory_says_so(tmp_path: Path):
    path = zoo.allocates_at_once(tmp_path / "m.onnx", gibibytes=1 << 20)
    with pytest.raises(OutOfMemory, match="ran out of memory on its warm-up sample"):
        load_file(path)


def test_giving_memory_back_is_harmless(tmp_path: Path):
    model = load_file(zoo.mlp(tmp_path / "m.onnx"))
    del model
    give_back()
