"""What rules may cost: bounded before they run, by the sizes of all that they touch."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hedgerow_protos import rule_cost
from hedgerow_protos.hedgerow_control_pb2 import Features
from hedgerow_protos.rule_expression import Environment
from hedgerow_protos.rule_variables import Variables
from hedgerow_protos.rules import MAX_STEPS
from hedgerow_protos.tensor_shape import TensorShape

INPUTS = [
    TensorShape("n", "INT64", (-1,)),
    TensorShape("s", "BYTES", (-1,)),
    TensorShape("l", "FP32", (-1, 64)),
    TensorShape("v", "FP32", (-1, -1)),
    TensorShape("w", "BYTES", (-1, -1)),
    TensorShape("g", "FP32", (-1, 8, 8)),
]
VARIABLES = Variables(Features(), INPUTS, batched=True)


def compiled(text: str):
    environment = Environment(VARIABLES, [text])
    return environment, environment.compile(text)


def steps(text: str) -> int:
    return compiled(text)[1].steps


@pytest.mark.parametrize(
    ("cheap", "dear", "times"),
    [
        ("n > 1", "n > 1 && n > 2", 2),
        ("l.all(x, x > 0.0)", "v.all(x, x > 0.0)", 12),  # 64 elements, and 1024
        ("l.all(x, x > 0.0)", "l.all(x, l.all(y, x > y))", 40),
        ("l.all(x, x > 0.0)", "l.map(x, x).all(x, x > 0.0)", 5),  # map copies what it has
        ("[1, 2].map(x, x) == [1]", "[1, 2].map(x, [x, x].map(y, y)) == [[1]]", 2.5),
        ("s == 'a'", "s == s + s", 10),
        ("s.contains('a')", "s.contains(s)", 50),
        ("'a' in [s]", "'a' in w", 100),
        ("size(l) > 1", "size(s) > 1", 5),
        ("g[0][0] > 0.0", "g.all(line, line.all(x, x > 0.0))", 50),
        ("[s].map(x, x + x)[0] == ''", "[s].map(x, x + x).map(x, x + x).map(x, x + x)[0] == ''", 4),
        ("{'a': 1}[s] > 0", "{'a': 1, 'b': 2}.all(k, k == s)", 2),
    ],
)
def test_what_touches_more_costs_more(cheap, dear, times):
    assert steps(dear) >= times * steps(cheap)


@pytest.mark.parametrize("count", [1, 2, 4, 8, 20])
def test_texts_that_double_are_followed(count):
    """The library would make 2**count copies of a text without a word."""
    text = "[s]" + ".map(x, x + x)" * count + "[0] == ''"
    assert steps(text) >= 2**count * rule_cost.MOST_TEXT_BYTES // 64


@pytest.mark.parametrize("macro", ["all(x, {})", "exists(x, {})", "exists_one(x, {})"])
def test_loops_within_loops_multiply(macro):
    text = "x > 0.0"
    seen = []
    for _ in range(4):
        text = f"l.{macro.format(text)}"
        seen.append(steps(text))
    assert all(later > 60 * before for before, later in pairwise(seen))


def test_variables_of_macros_hide_others_and_are_no_variables_of_the_request():
    assert compiled("l.all(n, n > 0.0)")[1].names == {"l"}
    assert compiled("l.all(x, n > 1)")[1].names == {"l", "n"}
    assert compiled(".n > 1")[1].names == {"n"}
    assert compiled("inputs.n > 1")[1].names == {"inputs.n"}


def test_reading_counts_elements_and_texts_more():
    cost = {name: rule_cost.reading(VARIABLES.known[name]) for name in ("n", "s", "l", "v", "w", "g")}
    assert cost == {"n": 1, "s": 4, "l": 64, "v": 1024, "w": 4096, "g": 64}


@pytest.mark.parametrize(
    "text",
    [
        "v.all(x, x >= 0.0)",
        "w.all(x, x != 'refund')",
        "l.map(x, x * 2.0).all(x, x >= 0.0)",
        "g.map(x, x.map(y, y + 1.0)).all(x, x.all(y, y > 0.0))",
        "s.contains('aaaaaaab') || s.contains('aaab')",
        "[s, s, s].map(x, x + x).all(x, x != s)",
        "l.all(x, l[1] + l[2] < 9.0 && l[3] == l[4] && !(l[5] > 1.0 || x > 2.0))",
    ],
)
def test_the_dearest_that_may_be_takes_no_more_than_a_moment(text):
    """MAX_STEPS stands for a millisecond; asserted with room for a busy machine."""
    environment, expression = compiled(text)
    assert 1000 < expression.steps <= MAX_STEPS
    values = {
        "n": 1,
        "s": "a" * 4096,
        "l": [0.5] * 64,
        "v": [0.5] * 1024,
        "w": ["a" * 64] * 1024,
        "g": [[0.5] * 8] * 8,
    }
    took = []
    for _ in range(20):
        began = time.perf_counter()
        expression.evaluate(environment.activation(values))
        took.append(time.perf_counter() - began)
    assert min(took) < 0.02
