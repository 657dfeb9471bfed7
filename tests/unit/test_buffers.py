"""Runs through buffers that stay, against plain runs of the same session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from fakes_engine import INLINE, THREADED, RequestPath, model, request, table
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_server.call import Call
from hedgerow_server.engine import buffers, loading
from hedgerow_server.engine.buffers import BoundRuns, Prepared
from hedgerow_server.engine.latency import LatencyModel
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.work import Work, assemble
from onnx import helper

#: Of the zoo; each fits into buffers.
FITTING = ["mlp", "several", "lookup", "logarithm", "running_sum", "batch_mean", "quantized"]
NUMBERS = [name for name in zoo.ELEMENT_TYPES if name != "BYTES"]


def made(of: Model, rows: int, source: np.random.Generator) -> dict[str, np.ndarray]:
    """Feeds of so many rows that the zoo's models answer."""
    return {
        spec.name: (np.abs(source.standard_normal((rows, *spec.shape[1:])) * 5) % 9).astype(
            spec.datatype.dtype
        )
        for spec in of.signature.inputs
    }


def brought(of: Model, feeds: dict[str, np.ndarray], *, viewed: bool) -> Call:
    """What the engine reads of a request with these feeds."""
    work = Call(b"", (), None, None, 0, 0)  # type: ignore[arg-type]  no sink: nothing is sent
    parts = [feeds[spec.name].tobytes() for spec in of.signature.inputs]
    work.parts = [memoryview(b"?" + part)[1:] for part in parts] if viewed else parts
    work.shapes = [array.shape for array in feeds.values()]
    work.rows = work.shapes[0][0]
    return work


def same(
    of: Model, bound: BoundRuns, brings: list[int], source: np.random.Generator, *, viewed: bool
) -> None:
    """Fails the test if a batch of requests of so many rows gives other numbers than a plain run."""
    feeds = [made(of, rows, source) for rows in brings]
    joined = {name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]}
    run, got = bound.fill([brought(of, each, viewed=viewed) for each in feeds], sum(brings))
    run()
    for one, other in zip(got, of.run(of.output_names, joined, None), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kind", FITTING)
def test_any_number_of_rows_gives_the_numbers_of_a_plain_run(kind: str) -> None:
    """Every number of rows, then others between: nothing is left of the run before."""
    of = model(kind)
    assert of.bound is not None
    bound = BoundRuns(of._session, of.signature, 32)  # type: ignore[arg-type]  it is open
    source = np.random.default_rng(0)
    for rows in (*range(1, 33), *range(32, 0, -1)):
        same(of, bound, [rows], source, viewed=rows % 2 == 0)
    for _ in range(30):
        same(of, bound, source.integers(1, 5, source.integers(1, 6)).tolist(), source, viewed=False)


@pytest.mark.parametrize("datatype", NUMBERS)
def test_every_datatype_that_has_a_size_passes(datatype: str) -> None:
    of = model("identity", datatype=datatype)
    assert of.bound is not None
    source = np.random.default_rng(1)
    for brings in ([1], [3], [2, 1], [1]):
        same(of, of.bound, brings, source, viewed=len(brings) == 1)


def _both_inputs_and_outputs(path: Path) -> Path:
    return zoo.save(
        path,
        [helper.make_node("Neg", ["x"], ["y"])],
        [zoo.tensor("x", ["batch", 2])],
        [zoo.tensor("x", ["batch", 2]), zoo.tensor("y", ["batch", 2])],
    )


def _identities(path: Path) -> Path:
    """Outputs that ONNX Runtime may make one of."""
    dims = ["batch", 2]
    return zoo.save(
        path,
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Identity", ["y"], ["z"]),
            helper.make_node("Reshape", ["z", "shape"], ["w"]),
        ],
        [zoo.tensor("x", dims)],
        [zoo.tensor("y", dims), zoo.tensor("z", dims), zoo.tensor("w", dims)],
        {"shape": np.array([-1, 2], np.int64)},
    )


def _branches(path: Path) -> Path:
    """Gives x itself or its negative, by its sum."""
    dims = ["batch", 2]

    def branch(name: str, operator: str) -> Any:
        return helper.make_graph(
            [helper.make_node(operator, ["x"], [name])], name, [], [zoo.tensor(name, dims)]
        )

    return zoo.save(
        path,
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "limit"], ["large"]),
            helper.make_node(
                "If", ["large"], ["y"], then_branch=branch("a", "Identity"), else_branch=branch("b", "Neg")
            ),
        ],
        [zoo.tensor("x", dims)],
        [zoo.tensor("y", dims)],
        {"limit": np.float32(20)},
    )


@pytest.mark.parametrize("write", [_both_inputs_and_outputs, _identities, _branches])
@pytest.mark.parametrize("inline_below", [INLINE, THREADED], ids=["inline", "threaded"])
async def test_outputs_that_are_inputs_are_each_callers_own(
    write: Callable[[Path], Path], inline_below: float, tmp_path: Path
) -> None:
    """ONNX Runtime need not write an output into its buffer; then another caller's would lie there."""
    file = write(tmp_path / "model.onnx")
    loaded = loading.load(file.parent, file.name, ServingSpec())
    of = Model("m", "1", "d", loaded, ServingSpec())
    path = await RequestPath.open(table(of), inline_below=inline_below)
    source = np.random.default_rng(2)
    for _ in range(20):
        feeds = made(of, int(source.integers(1, 4)), source)
        call = path.callers.call(request(feeds))
        path.answerer.answer([call])
        async with asyncio.timeout(20):
            await path.answerer.idle()
        got = path.callers.of(call).tensors
        for name, array in zip(of.output_names, of.run(of.output_names, feeds, None), strict=True):
            assert got[name].tolist() == array.tolist()
    await path.engine.close()


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("sequence", {}, "a dimension varies"),
        ("no_batch", {}, "no rows"),
        ("scalar", {}, "a scalar"),
        ("total", {}, "an output without rows"),
        ("identity", {"datatype": "BYTES"}, "texts"),
        ("identity", {"dims": ("batch", 0)}, "nothing in a row"),
        ("identity", {"dims": ("batch", 1 << 18)}, "large"),
    ],
)
def test_models_of_other_sizes_run_as_usual(kind: str, options: dict[str, Any], why: str) -> None:
    assert model(kind, **options).bound is None, why


async def test_every_caller_gets_its_own_numbers_whatever_fails_beside_it() -> None:
    """Rows of all sizes, outputs asked for as subsets, runs that fail: the next run overwrites no reply."""
    several, table_of = model("several", "several"), model("lookup", "lookup")
    path = await RequestPath.open(table(several, table_of))
    source = np.random.default_rng(3)
    sent: list[tuple[Call, dict[str, np.ndarray] | None]] = []
    for _ in range(60):
        calls = []
        for _ in range(source.integers(1, 8)):
            rows = int(source.integers(1, 6))
            if source.random() < 0.5:
                a, b = (source.standard_normal((rows, 2)).astype(np.float32) for _ in "ab")
                wanted: dict[str, np.ndarray] | None = {"sum": a + b, "difference": a - b, "larger": a > b}
                assert wanted is not None
                names = [str(name) for name in source.permutation(list(wanted))[: source.integers(0, 4)]]
                call = path.callers.call(request({"a": a, "b": b}, name="several", outputs=names))
                sent.append((call, {name: wanted[name] for name in names or wanted}))
            else:
                index = source.integers(0, 11, rows)
                call = path.callers.call(request({"index": index}, name="lookup"))
                right = {"y": np.arange(20, dtype=np.float32).reshape(10, 2)[index % 10]}
                sent.append((call, None if index.max() == 10 else right))
            calls.append(call)
        path.answerer.answer(calls)
    # All of them only now: no reply was changed by what came later.
    for call, expected in sent:
        reply = path.callers.of(call)
        assert (reply.code.name == "OK") == (expected is not None)
        if expected is not None:
            got = reply.tensors
            assert {name: array.tolist() for name, array in got.items()} == {
                name: array.tolist() for name, array in expected.items()
            }
    await path.engine.close()


async def test_buffers_that_cannot_be_filled_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    of = model("constant", value=1.0)
    path = await RequestPath.open(table(of))

    def fail(*_: object) -> None:
        raise MemoryError("nothing left for a binding")

    monkeypatch.setattr(buffers.BoundRuns, "_bind", fail)
    call = path.callers.call(request({"x": [[0.0] * 4]}))
    path.answerer.answer([call])
    assert path.callers.of(call).tensors["y"][0, 0] == 1.0
    await path.engine.close()


async def test_a_session_that_is_changed_is_not_run_any_more() -> None:
    """Its buffers go with it; requests that wait run in the new one."""
    of, other = model("constant", value=1.0), model("constant", value=2.0)
    path = await RequestPath.open(table(of))
    assert other._session is not None

    def ask() -> float:
        call = path.callers.call(request({"x": [[0.0] * 4]}))
        path.answerer.answer([call])
        return float(path.callers.of(call).tensors["y"][0, 0])

    assert ask() == 1.0
    before = of.bound
    of.shift(other._session, LatencyModel(first_guess=0.0))
    assert of.bound is not before
    assert [ask(), ask()] == [2.0, 2.0]
    of.close()
    assert of.bound is None
    call = path.callers.call(request({"x": [[0.0] * 4]}))
    path.answerer.answer([call])
    assert path.callers.of(call).code.name == "INTERNAL"
    of.shift(other._session, LatencyModel(first_guess=0.0))
    assert of.bound is None, "closed is closed"
    await path.engine.close()


@pytest.mark.parametrize(("inline_below", "times"), [(INLINE, 5), (THREADED, 0)], ids=["inline", "threaded"])
async def test_only_the_loops_thread_uses_the_buffers(
    inline_below: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads in one buffer would mix callers up."""
    of = model("several")
    runs: list[int] = []
    fill = BoundRuns.fill

    def note(self: BoundRuns, batch: Sequence[Work], rows: int) -> Prepared:
        runs.append(rows)
        return fill(self, batch, rows)

    monkeypatch.setattr(buffers.BoundRuns, "fill", note)
    path = await RequestPath.open(table(of), inline_below=inline_below)
    for _ in range(5):
        path.answerer.answer([path.callers.call(request({"a": [[1, 2]], "b": [[3, 4]]}))])
        async with asyncio.timeout(20):
            await path.answerer.idle()
    assert len(runs) == times
    await path.engine.close()


def test_more_rows_than_there_is_room_for_run_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "MOST_ROWS", 4)
    of = model("several", max_batch_size=64)
    assert of.bound is not None
    assert of.bound.max_rows == 4

    async def scenario() -> None:
        path = await RequestPath.open(table(of))
        for rows in (4, 5, 70, 1):
            x = np.full((rows, 2), rows, np.float32)
            call = path.callers.call(request({"a": x, "b": x}))
            path.answerer.answer([call])
            async with asyncio.timeout(20):
                await path.answerer.idle()
            assert path.callers.of(call).tensors["sum"].tolist() == (x + x).tolist()
        await path.engine.close()

    asyncio.run(scenario())


def test_a_tensor_at_an_odd_place_is_given_to_kernels_at_an_even_one() -> None:
    """How long an id a caller sends must not decide how its numbers are aligned."""
    of = model("several")
    feeds = made(of, 600, np.random.default_rng(4))
    for array in assemble(of.signature, [brought(of, feeds, viewed=True)], 600).values():
        assert array.flags.aligned
