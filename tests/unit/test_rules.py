"""Fallback rules at work: what they answer is what their conditions say, whatever a request brings."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from feature_views import elements
from hedgerow_protos import serving_spec
from hedgerow_protos.feature_datatypes import DTYPES
from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.refusal import LoadRefused
from hedgerow_server.engine.signature import Signature, TensorSpec
from hedgerow_server.resilience.rules import Answered, Rules, Unanswered
from hypothesis import given, settings
from hypothesis import strategies as st


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, DATATYPES[datatype], shape)


def signature(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...], rows: int = 128) -> Signature:
    return Signature(inputs, outputs, rows)


SCORE = (spec("score", "FP32", -1, 1),)


def compiled(shape: Signature, *rules: dict[str, object], rest: str = "", **more: object) -> Rules:
    text = yaml.safe_dump({"fallback": {"rules": list(rules)}, **more}, sort_keys=False)
    found = Rules.compile(serving_spec.parse(rest + text, source="serving.yaml"), shape)
    assert found is not None
    return found


def rule(name: str, when: str = "", /, **outputs: object) -> dict[str, object]:
    return {"name": name, "when": when, "outputs": outputs}


def part(array: np.ndarray) -> Any:
    return array if array.dtype.hasobject else array.tobytes()


def ask(rules: Rules, *arrays: np.ndarray, asked: tuple[int, ...] | None = None) -> Answered | Unanswered:
    return rules.answer([part(array) for array in arrays], [array.shape for array in arrays], asked)


def answer(rules: Rules, *arrays: np.ndarray, asked: tuple[int, ...] | None = None) -> Answered:
    answered = ask(rules, *arrays, asked=asked)
    assert isinstance(answered, Answered), answered
    return answered


X = spec("x", "FP32", -1, 2)


def test_the_first_rule_that_holds_answers_each_row():
    rules = compiled(
        signature(X, outputs=SCORE),
        rule("large", "x[0] > 10.0", score="x[1]"),
        rule("small", "x[0] < 1.0", score="x[1] * 2.0"),
        rule("rest", score=0.5),
    )
    x = np.array([[11, 1], [0, 2], [5, 3], [12, 4]], np.float32)
    answered = answer(rules, x)
    assert answered.outputs[0].dtype == np.float32
    assert answered.outputs[0].tolist() == [[1.0], [4.0], [0.5], [4.0]]
    assert answered.rules == {"large": 2, "small": 1, "rest": 1}
    assert answered.rule == "large,small,rest"
    assert answered.failures == {}


def test_outputs_come_in_the_order_asked_for_and_no_other_is_evaluated():
    shape = signature(X, outputs=(spec("a", "FP64", -1), spec("b", "INT8", -1, 1), spec("c", "BYTES", -1)))
    rules = compiled(shape, rule("only", a="1.0 / 0.0", b="1 / (int(x[0]) - 1)", c="'t'"))
    x = np.ones((3, 2), np.float32)
    assert isinstance(ask(rules, x), Unanswered)  # b divides by zero
    c, a = answer(rules, x, asked=(2, 0)).outputs
    assert c.tolist() == ["t"] * 3
    assert a.tolist() == [math.inf] * 3
    assert a.shape == (3,)


def test_a_thousand_rows_are_answered_each_by_itself():
    rules = compiled(
        signature(X, outputs=SCORE), rule("up", "x[0] >= x[1]", score="x[0] - x[1]"), rule("down", score=-1)
    )
    x = np.random.default_rng(0).random((1000, 2), np.float32)
    answered = answer(rules, x)
    expected = np.where(x[:, 0] >= x[:, 1], x[:, 0].astype(float) - x[:, 1], -1).astype(np.float32)
    np.testing.assert_array_equal(answered.outputs[0][:, 0], expected)
    assert sum(answered.rules.values()) == 1000


async def test_other_work_of_the_loop_goes_on_between_turns():
    rules = compiled(signature(X, outputs=SCORE), rule("a", "x[0] > 0.5", score=1), rule("b", score=0))
    x = np.random.default_rng(0).random((5 * rules.turn_rows, 2), np.float32)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    answered = await rules.answer_in_turns([x.tobytes()], [x.shape], None)
    task.cancel()
    assert turns >= 5
    assert isinstance(answered, Answered)
    assert answered.outputs[0].tobytes() == answer(rules, x).outputs[0].tobytes()


@pytest.mark.parametrize(
    ("when", "failing"),
    [
        ("1 / n > 0", 0),
        ("n + 9223372036854775806 > 0", 5),
        ("[1, 2][n] > 0", 7),
        ("{1: true}[n]", 9),
        ("int(double(n) * 1e18) > 0", 1000),
    ],
)
def test_a_rule_that_fails_on_a_row_leaves_it_to_the_next(when, failing):
    n = spec("n", "INT64", -1)
    rules = compiled(signature(n, outputs=SCORE), rule("first", when, score=1), rule("rest", score=2))
    answered = answer(rules, np.array([1, failing, 1]))
    assert answered.failures == {"first": 1}
    assert answered.outputs[0][1] == 2


def test_a_text_that_fails_is_not_answered_with_the_librarys_message():
    n = spec("n", "INT64", -1)
    shape = signature(n, outputs=(spec("y", "BYTES", -1), spec("z", "BYTES", -1, 1)))
    rules = compiled(
        shape, rule("first", y="['a', 'b'][n]", z="string(1 / n)"), rule("rest", y="'c'", z="'d'")
    )
    assert [output.ravel().tolist() for output in answer(rules, np.array([1, 7, 0])).outputs] == [
        ["b", "c", "c"],
        ["1", "d", "d"],
    ]


def test_an_output_that_fails_leaves_the_row_to_the_next_rule_whole():
    """Not one output of the one rule and the other of the other."""
    n = spec("n", "INT64", -1)
    shape = signature(n, outputs=(spec("a", "INT64", -1), spec("b", "UINT8", -1)))
    rules = compiled(shape, rule("first", a="n", b="n"), rule("rest", a=0, b=0))
    answered = answer(rules, np.array([3, 300, -1]))
    assert [output.tolist() for output in answered.outputs] == [[3, 0, 0], [3, 0, 0]]
    assert (answered.rules, answered.failures) == ({"rest": 2, "first": 1}, {"first": 2})


def test_when_the_last_rule_fails_nothing_is_answered_and_it_says_why():
    n = spec("n", "INT64", -1)
    rules = compiled(
        signature(n, outputs=SCORE), rule("first", "n > 5", score=1), rule("last", score="10 / n")
    )
    failed = ask(rules, np.array([1, 0]))
    assert failed == Unanswered("rule 'last': divide by zero", {"last": 1})


@pytest.mark.parametrize("policy", ["allow", "reject"])
@pytest.mark.parametrize(("value", "written"), [(0.0, "nan"), (1.0, "inf"), (-1.0, "-inf")])
def test_not_finite_numbers_follow_the_policy_of_the_model(policy, value, written):
    shape = signature(spec("x", "FP32", -1), outputs=SCORE)
    rules = compiled(shape, rule("first", score="x / 0.0"), rule("rest", score=7), nan={"outputs": policy})
    answered = answer(rules, np.array([value], np.float32))
    assert str(answered.outputs[0][0, 0]) == (written if policy == "allow" else "7.0")


def test_a_number_beyond_the_datatype_is_infinite_or_a_failure():
    shape = signature(spec("x", "FP64", -1), outputs=(spec("y", "FP16", -1), spec("z", "FP16", -1, 2)))
    big = [rule("first", y="x", z="[x, 1.0]"), rule("rest", y=7, z=[7, 7])]
    assert [out.tolist() for out in answer(compiled(shape, *big), np.array([1e5])).outputs] == [
        [math.inf],
        [[math.inf, 1.0]],
    ]
    strict = compiled(shape, *big, nan={"outputs": "reject"})
    assert [out.tolist() for out in answer(strict, np.array([1e5])).outputs] == [[7.0], [[7.0, 7.0]]]


def test_sizes_that_vary_are_the_lists_and_alike_for_all_rows():
    shape = signature(spec("v", "FP32", -1, -1), outputs=(spec("y", "FP32", -1, -1),))
    rules = compiled(shape, rule("two", "v[0] > 0.0", y="[v[0], v[1]]"), rule("rest", y="v"))
    assert answer(rules, np.array([[2, 3, 0.5]], np.float32)).outputs[0].tolist() == [[2, 3]]
    assert answer(rules, np.zeros((2, 0), np.float32)).outputs[0].shape == (2, 0)
    uneven = ask(rules, np.array([[2, 3, 0.5], [0, 0, 0]], np.float32))
    assert isinstance(uneven, Unanswered)
    assert "rows of output 'y' have several sizes" in uneven.reason


def test_lists_of_the_wrong_size_fail_the_rule():
    shape = signature(spec("v", "FP32", -1, -1), outputs=(spec("y", "FP32", -1, 2),))
    rules = compiled(shape, rule("same", y="v"), rule("rest", y=[0, 0]))
    assert answer(rules, np.ones((1, 2), np.float32)).rule == "same"
    assert answer(rules, np.ones((1, 3), np.float32)).rule == "rest"


def test_without_a_batch_a_request_is_answered_whole():
    shape = signature(
        spec("x", "FP32", 2, -1), spec("one", "INT64", 1, 1),
        outputs=(spec("y", "FP32", 2, -1), spec("z", "INT64", 1), spec("s", "FP32")), rows=0,
    )  # fmt: skip
    rules = compiled(
        shape, rule("all", "x[0][0] > 0.0", y="x", z="one + 1", s="x[1][1]"), rule("rest", y="x", z=0, s=0)
    )
    x = np.array([[1, 2], [3, 4]], np.float32)
    answered = answer(rules, x, np.array([[5]]))
    assert [output.tolist() for output in answered.outputs] == [[[1, 2], [3, 4]], [6], 4.0]
    assert answered.rules == {"all": 1}


@pytest.mark.parametrize(
    ("text", "is_seen"),
    [
        ("a", True),
        ("é" * 2048, True),
        ("a" * 4096, True),
        ("a" * 4097, False),
        ("é" * 2049, False),
        ("a\0b", False),  # the CEL library would see "a"
        ("", True),
    ],
)
def test_a_text_is_seen_whole_or_not_at_all(text, is_seen):
    shape = signature(spec("t", "BYTES", -1), outputs=(spec("y", "BYTES", -1),))
    rules = compiled(shape, rule("copy", y="t"), rule("rest", y="'unseen'"))
    answered = answer(rules, np.array([text, "ok"], object))
    assert answered.outputs[0].tolist() == [text if is_seen else "unseen", "ok"]


def test_a_list_that_varies_is_seen_up_to_its_bound():
    shape = signature(
        spec("v", "INT64", -1, -1), spec("w", "BYTES", -1, -1), outputs=(spec("y", "INT64", -1),)
    )
    rules = compiled(shape, rule("both", y="size(v) + size(w)"), rule("one", y="size(v)"), rule("rest", y=-1))

    def seen(numbers: int, texts: int, text: str = "a") -> int:
        words = np.full((1, texts), text, object)
        return answer(rules, np.zeros((1, numbers), np.int64), words).outputs[0].item()

    assert seen(1024, 1024) == 2048
    assert seen(1025, 3) == -1
    assert seen(4, 1025) == 4
    assert seen(4, 16, "a" * 4096) == 20
    assert seen(4, 17, "a" * 4096) == 4


VIEWS = """
features:
  views:
    - {name: plane, version: 1, entity: [{name: tail, datatype: BYTES}], ttl: 60s, stale_ttl: 60s,
       fields: [{name: seats, datatype: FP32, default: 0},
                {name: spot, datatype: FP32, width: 2, default: 0}]}
  inputs:
    - input: x
      columns: [{view: plane@1}, {request: {name: hours}}]
"""


@pytest.mark.parametrize("width", [4, -1])
def test_columns_of_a_bound_input_are_cut_out_of_it(width):
    shape = signature(spec("x", "FP32", -1, width), outputs=SCORE)
    rules = compiled(
        shape,
        rule("late", "hours > 2.0 && plane.seats < 100.0", score="spot[0] - plane.spot[1]"),
        rule("rest", score="x[3]"),
        rest=VIEWS,
    )
    x = np.array([[90, 5, 3, 7], [120, 5, 3, 9]], np.float32)
    assert answer(rules, x).outputs[0].tolist() == [[2.0], [9.0]]
    if width < 0:
        # Sent itself, with a width of its own: it has no columns then, but its elements.
        answered = answer(rules, np.array([[90, 5, 3, 7, 8]], np.float32))
        assert (answered.outputs[0].item(), answered.failures) == (7.0, {"late": 1})


def test_rules_that_look_at_nothing_answer_any_number_of_rows():
    rules = compiled(signature(X, outputs=SCORE), rule("never", "false", score=1), rule("flat", score=0.25))
    answered = answer(rules, np.zeros((100_000, 2), np.float32))
    assert answered.outputs[0].shape == (100_000, 1)
    assert (answered.outputs[0] == 0.25).all()
    assert answered.rules == {"flat": 100_000}


def test_names_of_many_rules_are_cut_short_between_two():
    n = spec("n", "INT64", -1)
    long = [rule(f"rule-number-{i:02}-{'x' * 40}", f"n == {i}", score=i) for i in range(20)]
    answered = answer(compiled(signature(n, outputs=SCORE), *long, rule("rest", score=0)), np.arange(20))
    assert len(answered.rule) <= 210
    assert all(len(name) == 55 or name == "..." for name in answered.rule.split(","))


def test_parts_that_are_not_what_they_say_are_no_defect_of_the_caller():
    """Nothing of the kind gets past the codec; if it ever does, the caller hears of its own failure."""
    rules = compiled(signature(X, outputs=SCORE), rule("only", score="x[0]"))
    assert isinstance(rules.answer([b"123"], [(1, 2)], None), Unanswered)


def test_a_refusal_is_the_loaders():
    with pytest.raises(LoadRefused, match=r"rule 'only': output 'score': \"y\": column 1: unknown variable"):
        compiled(signature(X, outputs=SCORE), rule("only", score="y"))


# Any rules over any rows, held against Python.


class Condition(NamedTuple):
    """A condition in CEL, and the same over the row's values in Python."""

    text: str
    holds: Callable[[dict[str, Any]], bool]


def literal(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
    if isinstance(value, float):
        return (
            repr(value)
            if math.isfinite(value)
            else f"({ {1: '1.0', -1: '-1.0', 0: '0.0'}[_sign(value)] } / 0.0)"
        )
    return str(value)


def _sign(value: float) -> int:
    return 0 if math.isnan(value) else 1 if value > 0 else -1


COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@st.composite
def comparisons(draw: st.DrawFn, name: str, datatype: str, *, listed: bool) -> Condition:
    """Something about one variable, or any or all of its elements."""
    sign = draw(st.sampled_from(list(COMPARISONS)))
    compare = COMPARISONS[sign]
    value = draw(elements(datatype).filter(lambda value: value != "\0"))
    written = literal(value) + ("u" if datatype == "UINT64" else "")
    if not listed:
        return Condition(f"{name} {sign} {written}", lambda row: compare(row[name], value))
    how, gather = draw(st.sampled_from([("all", all), ("exists", any)]))
    return Condition(
        f"{name}.{how}(e, e {sign} {written})",
        lambda row: gather(compare(element, value) for element in row[name]),
    )


def combined(parts: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    both = st.tuples(parts, parts)
    return (
        both.map(
            lambda p: Condition(f"({p[0].text} && {p[1].text})", lambda r: p[0].holds(r) and p[1].holds(r))
        )
        | both.map(
            lambda p: Condition(f"({p[0].text} || {p[1].text})", lambda r: p[0].holds(r) or p[1].holds(r))
        )
        | parts.map(lambda p: Condition(f"!({p.text})", lambda r: not p.holds(r)))
    )


@st.composite
def cases(draw: st.DrawFn):
    """A model of any inputs, rules over them, and rows."""
    datatypes = draw(st.lists(st.sampled_from(list(DTYPES)), min_size=1, max_size=3))
    rows = draw(st.integers(1, 5))
    inputs, arrays, leaves = [], [], []
    for index, datatype in enumerate(datatypes):
        listed = draw(st.booleans())
        width = draw(st.integers(2, 3)) if listed else 1
        values = draw(st.lists(elements(datatype), min_size=rows * width, max_size=rows * width))
        dtype = object if datatype == "BYTES" else DTYPES[datatype]
        arrays.append(np.array(values, dtype).reshape(rows, width))
        inputs.append(spec(f"v{index}", datatype, -1, width))
        leaves.append(comparisons(f"v{index}", datatype, listed=listed))
    conditions = draw(
        st.lists(st.recursive(st.one_of(leaves), combined, max_leaves=5), min_size=1, max_size=4)
    )
    return inputs, arrays, conditions


@settings(deadline=None)
@given(cases())
def test_any_rules_answer_as_python_would(case):
    inputs, arrays, conditions = case
    rules = compiled(
        signature(*inputs, outputs=(spec("which", "INT64", -1),)),
        *(rule(f"r{i}", condition.text, which=i) for i, condition in enumerate(conditions)),
        rule("rest", which=-1),
    )
    answered = answer(rules, *arrays)
    expected, failures = [], 0
    for row in range(len(arrays[0])):
        values = {one.name: array[row].tolist() for one, array in zip(inputs, arrays, strict=True)}
        seen = {one.name: values[one.name][0] if one.shape[1] == 1 else values[one.name] for one in inputs}
        hidden = {name for name in seen if "\0" in "".join(map(str, values[name]))}
        which = -1
        for index, condition in enumerate(conditions):
            if any(name in condition.text for name in hidden):
                # `a || b` may hold without its a; these rows are only counted.
                which = None
                break
            if condition.holds(seen):
                which = index
                break
        failures += which is None
        expected.append(which)
    for given_answer, wanted in zip(answered.outputs[0].tolist(), expected, strict=True):
        assert wanted is None or given_answer == wanted
    if not failures:
        assert answered.failures == {}
