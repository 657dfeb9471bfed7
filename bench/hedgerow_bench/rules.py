"""What fallback rules take: `python -m hedgerow_bench.rules`.

The objects that a server has: rules compiled from a serving.yaml, tensors as they lie in a request's message,
outputs as the reply's encoder takes them. One thread's processor time, which other processes hardly touch;
medians of rounds that take turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hedgerow_protos import serving_spec
from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.signature import Signature, TensorSpec
from hedgerow_server.engine.work import Part
from hedgerow_server.resilience.rules import Answered, Rules
from rich.console import Console
from rich.table import Table

ROUNDS = 15
#: Seconds of one round of one case.
SECONDS = 0.05
#: Rows of one request.
SIZES = (1, 100, 1000)

#: Inputs of the model: ten numbers, a whole number and a text a row.
_INPUTS = (
    TensorSpec("x", DATATYPES["FP32"], (-1, 10)),
    TensorSpec("count", DATATYPES["INT64"], (-1,)),
    TensorSpec("kind", DATATYPES["BYTES"], (-1, 1)),
)
_SCORE = TensorSpec("score", DATATYPES["FP32"], (-1, 1))
_CLASSES = TensorSpec("classes", DATATYPES["FP32"], (-1, 3))


@dataclass(frozen=True, slots=True)
class Case:
    """Rules, as in serving.yaml, for a model with these outputs."""

    name: str
    outputs: tuple[TensorSpec, ...]
    rules: str


CASES = (
    Case("a constant", (_SCORE,), "[{name: flat, outputs: {score: 0.1}}]"),
    Case("one formula", (_SCORE,), "[{name: mean, outputs: {score: 'x[0] * 0.5 + x[1]'}}]"),
    Case(
        "two conditions, a constant each",
        (_SCORE,),
        """
        - {name: large, when: count > 8, outputs: {score: 0.9}}
        - {name: known, when: "kind == 'known'", outputs: {score: 0.2}}
        - {name: flat, outputs: {score: 0.1}}
        """,
    ),
    Case(
        "one condition, three numbers out of a formula",
        (_CLASSES,),
        """
        - {name: large, when: "count > 4 && x[0] > 0.5", outputs: {classes: "[x[0], x[1], 1.0 - x[0]]"}}
        - {name: flat, outputs: {classes: [0.2, 0.3, 0.5]}}
        """,
    ),
    Case(
        "ten conditions that do not hold",
        (_SCORE,),
        "\n".join(f"- {{name: r{i}, when: count > {100 + i}, outputs: {{score: 1}}}}" for i in range(10))
        + "\n- {name: flat, outputs: {score: 0.1}}",
    ),
    Case(
        "a loop over ten numbers",
        (_SCORE,),
        """
        - {name: any, when: "x.exists(v, v > 2.0)", outputs: {score: 0.9}}
        - {name: flat, outputs: {score: 0.1}}
        """,
    ),
)


def prepared(case: Case) -> Rules:
    """The rules of a case, compiled."""
    serving = serving_spec.parse(f"fallback:\n  rules:\n{_indented(case.rules)}", source=case.name)
    rules = Rules.compile(serving, Signature(_INPUTS, case.outputs, 1024))
    assert rules is not None
    return rules


def request(rows: int) -> tuple[list[Part], list[tuple[int, ...]]]:
    """Parts and shapes of a request of so many rows."""
    random = np.random.default_rng(0)
    arrays = (
        random.random((rows, 10), np.float32),
        random.integers(0, 10, rows),
        np.array(["known", "new", "odd"], object)[random.integers(0, 3, (rows, 1))],
    )
    parts: list[Part] = [array if array.dtype.hasobject else array.tobytes() for array in arrays]
    return parts, [array.shape for array in arrays]


def main() -> None:
    """Prints microseconds a row, and what compiling takes."""
    runs: dict[tuple[str, int], Callable[[], object]] = {}
    compiling: dict[str, float] = {}
    for case in CASES:
        prepared(case)  # the first loads the library
        began = time.thread_time()
        rules = prepared(case)
        compiling[case.name] = time.thread_time() - began
        for rows in SIZES:
            runs[case.name, rows] = _run(rules, rows)
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for _ in range(ROUNDS):
        for key, run in runs.items():
            seconds[key].append(_time(run))
    table = Table("rules", *(f"{rows} row{'s' * (rows > 1)}" for rows in SIZES), "compile", box=None)
    for case in CASES:
        cells = [f"{statistics.median(seconds[case.name, rows]) / rows * 1e6:.2f}" for rows in SIZES]
        table.add_row(case.name, *cells, f"{compiling[case.name] * 1e3:.1f} ms")
    console = Console()
    console.print(f"Microseconds a row, by rows of the request; medians of {ROUNDS} rounds")
    console.print(table)


def _run(rules: Rules, rows: int) -> Callable[[], object]:
    parts, shapes = request(rows)

    def run() -> object:
        return rules.answer(parts, shapes, None)

    assert isinstance(run(), Answered)
    return run


def _time(run: Callable[[], object]) -> float:
    """Seconds of the processor for one call."""
    began, times = time.thread_time(), 0
    while (took := time.thread_time() - began) < SECONDS:
        for _ in range(10):
            run()
        times += 10
    return took / times


def _indented(rules: str) -> str:
    lines = [line.strip() for line in rules.strip().splitlines()]
    return "\n".join(f"    {line}" for line in lines)


if __name__ == "__main__":
    main()
