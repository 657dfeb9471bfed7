"""Fallback rules: what compiles, and what is said of what does not, at publish as at load."""

from __future__ import annotations

import pytest
import yaml
from feature_views import WEATHER
from hedgerow_protos import serving_spec
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_protos.rule_variables import Variables
from hedgerow_protos.rules import MAX_EXPRESSIONS, MAX_RULES, MAX_STEPS, RuleError, compile_rules
from hedgerow_protos.tensor_shape import TensorShape

X = TensorShape("x", "FP32", (-1, 4))
COUNT = TensorShape("count", "INT32", (-1,))
BIG = TensorShape("big", "UINT64", (-1, 1))
FLAG = TensorShape("flag", "BOOL", (-1, 1, 1))
COLOUR = TensorShape("colour", "BYTES", (-1, 1))
WORDS = TensorShape("words", "BYTES", (-1, -1))
GRID = TensorShape("grid", "FP64", (-1, 2, 3))
IMAGE = TensorShape("image", "FP32", (-1, 3, 224, 224))
ODD = TensorShape("dense/x:0", "FP32", (-1, 1))
RESERVED = TensorShape("in", "FP32", (-1, 1))
INPUTS = [X, COUNT, BIG, FLAG, COLOUR, WORDS, GRID, IMAGE, ODD, RESERVED]

SCORE = TensorShape("score", "FP32", (-1, 1))
LABEL = TensorShape("label", "INT64", (-1,))
CLASSES = TensorShape("classes", "FP32", (-1, 3))
NAME = TensorShape("name", "BYTES", (-1, 1))
OUTPUTS = [SCORE]


def spec(*rules: dict, **rest: object) -> ServingSpec:
    text = yaml.safe_dump({"fallback": {"rules": list(rules)}, **rest}, sort_keys=False)
    return serving_spec.parse(text, source="serving.yaml")


def rule(name: str = "only", when: object = "", /, **outputs: object) -> dict:
    return {"name": name, "when": when, "outputs": outputs or {"score": 0.5}}


def compiled(*rules: dict, inputs=INPUTS, outputs=OUTPUTS, batched: bool = True, **rest: object):
    return compile_rules(spec(*rules, **rest), inputs, outputs, batched=batched)


def refusal(*rules: dict, **how: object) -> str:
    with pytest.raises(RuleError) as caught:
        compiled(*rules, **how)
    return str(caught.value)


def test_without_rules_there_is_nothing():
    assert compile_rules(ServingSpec(), INPUTS, OUTPUTS, batched=True) is None


@pytest.mark.parametrize(
    "when",
    [
        "true",
        "x[0] > 1.0",
        "x[0] + x[1] * 2.0 >= -1e3",
        "x.exists(v, v > 0.5) && !x.all(v, v > 0.5)",
        "x == [0.0, 0.0, 0.0, 0.0]",
        "count > 3 && count % 2 == 0",
        "double(count) / 2.0 > 1.5",
        "big > 18446744073709551614u",
        "flag || !flag",
        "colour == 'blue' || colour.startsWith('dark') || colour in ['red', \"pink\"]",
        "size(colour) > 3 && colour.contains('lu')",
        "words.exists(word, word == 'refund')",
        "words[0] + words[1] == 'ab'",
        "grid[1][2] > 0.0",
        "grid.all(line, line.exists(v, v > 0.0))",
        "grid.map(line, line[0]) == [0.0, 1.0]",
        "math.abs(x[0]) < math.least(1.0, x[1], 3.5)",
        "math.isNaN(x[0]) || math.isInf(x[1])",
        "dense_x_0 > 0.0 && inputs.dense_x_0 < 1.0",
        "in_ > 0.0 && inputs.in_ > 0.0",
        "inputs.count == count",
        "{'blue': 1, 'red': 2}[colour] > 1",
        "has({'blue': 1}.blue)",
        "int(colour) == 3 ? flag : count > 1",
        "  x[0]\n  > 1.0 // a comment",
        True,
    ],
)
def test_what_a_condition_may_say(when):
    assert compiled(rule("first", when), rule("last")).rules[0].when is not None


@pytest.mark.parametrize(
    ("output", "expression"),
    [
        (SCORE, 0.5),
        (SCORE, 1),
        (SCORE, "x[0] * 0.5"),
        (SCORE, "count"),
        (SCORE, "big"),
        (SCORE, "flag ? 1.0 : 0.0"),
        (LABEL, 3),
        (LABEL, "count + 1"),
        (LABEL, "int(x[0])"),
        (TensorShape("u", "UINT64", (-1,)), "big"),
        (TensorShape("u", "UINT8", (-1,)), "255"),
        (TensorShape("b", "BOOL", (-1,)), "flag"),
        (TensorShape("b", "BOOL", (-1,)), False),
        (NAME, "'none'"),
        (NAME, "colour + '!'"),
        (NAME, "string(count)"),
        (CLASSES, [0.1, 0.2, 0.7]),
        (CLASSES, [0, 0.5, 1]),
        (CLASSES, "[x[0], x[1], 1.0 - x[0]]"),
        (CLASSES, "[1, 2, 3]"),
        (TensorShape("more", "FP32", (-1, -1)), "x"),
        (TensorShape("more", "FP32", (-1, -1)), "x.map(v, v * 2.0)"),
        (TensorShape("more", "BYTES", (-1, -1)), "words"),
        (TensorShape("two", "FP32", (-1, 2, 3)), "grid"),
        (TensorShape("two", "FP32", (-1, 2, 1)), [[1], [2]]),
    ],
)
def test_what_an_output_takes(output, expression):
    assert compiled(rule(**{output.name: expression}), outputs=[output]) is not None


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("x[0] > 1", "column 6: `>` does not take double, int; a number beside one with a point needs"),
        ("count > 1.0", "`>` does not take int, double"),
        ("big > 1", "`>` does not take uint, int; a number beside an unsigned one is written 1u"),
        ("x > 1.0", "`>` does not take list(double), double"),
        ("x", "it gives list(double); expected a bool"),
        ("count", "it gives int; expected a bool"),
        ("colours == 'blue'", "unknown variable 'colours'; did you mean 'colour'?"),
        ("zzz", "unknown variable or function 'zzz'; variables here: big, colour, count, dense_x_0,"),
        ("inputs.zzzzzz > 1.0", "column 7: unknown variable or function 'inputs.zzzzzz'"),
        ("colour == blue", "unknown variable or function 'blue'; variables here"),
        ("lower(colour) == 'blue'", "unknown variable or function 'lower'"),
        ("x.size > 1", "cannot be the operand of a select operation"),
        ("x['0'] > 1.0", "`[ ]` does not take list(double), string"),
        ("flag ? 1 : 'a'", "`? :` does not take bool, int, string"),
        ("colour in 'blue'", "`in` does not take string, string"),
        ("x[0] >", "column 7: Syntax error: mismatched input '<EOF>'"),
        ("x[0] >\n\n> 1.0", "line 3, column 1: Syntax error"),
        ("x[0] > 1.0; true", "Syntax error"),
        ("'", "Syntax error"),
        ("colour.matches('a*')", "`matches` is not for rules; they have size, contains, startsWith"),
        ("timestamp(count).getHours() > 3", "`timestamp` is not for rules"),
        ("dyn(count) > 1.5", "`dyn` is not for rules"),
        ("type(count) == int", "`type` is not for rules"),
        ("[1, 'a'][0] == 1", "it mixes types, so that they could be checked only when it is evaluated"),
        ("math.least(1, x[0]) > 0.0", "it mixes types"),
        ("{'a': 1, 'b': 'c'}[colour] == 1", "it mixes types"),
        ("google.protobuf.Int64Value{value: 3} == 3", "is a message, which rules do not use"),
        ("1 / 0 > 1", "it fails for every row: divide by zero"),
        ("9223372036854775807 + 1 > 1", "it fails for every row: integer overflow"),
        ("99999999999999999999 > 1", "column 1:"),
        ("[1][3] > 1", "it fails for every row: Index error"),
        ("(" * 40 + "flag" + ")" * 40, "nested more than 32 deep"),
        (" + ".join(["count"] * 40) + " > 1", "nested more than 32 deep, which is the most; each term"),
        ("a" * 5000, "when has 5000 characters; expected at most 4096"),
        ("image[0][0][0] > 0.0", "a row may take 150"),
        ("colour == 'a\0b'", "NUL"),
        ("  ", "Syntax error"),
    ],
)
def test_a_condition_that_cannot_work_is_refused_with_its_place(when, message):
    said = refusal(rule("first", when), rule("last"))
    assert message in said
    assert "rule 'first'" in said or "all rules together" in said
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("output", "expression", "message"),
    [
        (SCORE, "'a'", "it gives string; the output takes double"),
        (SCORE, True, "it gives bool; the output takes double"),
        (SCORE, "[0.5]", "it gives list(double); the output takes double"),
        (SCORE, "x", "it gives list(double); the output takes double"),
        (LABEL, "x[0]", "it gives double; the output takes int; int() cuts"),
        (LABEL, "9223372036854775808u", "9223372036854775808 is out of the range of output 'label'"),
        (TensorShape("u", "UINT8", (-1,)), "256", "256 is out of the range of output 'u'"),
        (TensorShape("u", "UINT8", (-1,)), "-1", "-1 is out of the range"),
        (TensorShape("b", "BOOL", (-1,)), "1", "it gives int; the output takes bool"),
        (NAME, "b'raw'", "it gives bytes; the output takes string"),
        (NAME, "none", "unknown variable or function 'none'; variables here"),
        (CLASSES, 0.5, "it gives double; the output takes list(double) with 3 elements"),
        (CLASSES, "[0.5, 0.5]", "it lists 2 elements; the output takes list(double) with 3 elements"),
        (CLASSES, "[x[0], 0.5]", "it lists 2 elements"),
        (CLASSES, "x.map(v, v)", None),  # may be right for some rows
        (CLASSES, "['a', 'b', 'c']", "it gives list(string)"),
        (CLASSES, "[1, 0.5, 0.5]", "it gives list(dyn); the output takes list(double) with 3 elements; its"),
        (CLASSES, "[]", "its elements are of several types or none"),
        (TensorShape("two", "FP32", (-1, 2, 3)), [[1, 2], [3, 4]], "it lists 2 elements; the output takes"),
        (TensorShape("two", "FP32", (-1, 2, 3)), "[[1.0, 2.0, 3.0], [1.0]]", "rows of several lengths"),
        (SCORE, "null", "it gives null"),
    ],
)
def test_an_output_that_does_not_fit_is_refused(output, expression, message):
    if message is None:
        compiled(rule(**{output.name: expression}), outputs=[output])
        return
    said = refusal(rule(**{output.name: expression}), outputs=[output])
    assert f"rule 'only': output {output.name!r}: " in said
    assert message in said


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([rule(), rule()], "rule 'only' is there twice"),
        ([rule("A b")], "fallback.rules[0]: 'A b' cannot name a rule: use 1 to 63 of a-z"),
        ([{"outputs": {"score": 1}}], "fallback.rules[0]: '' cannot name a rule"),
        ([rule("x" * 64)], "cannot name a rule"),
        ([rule("a,b")], "cannot name a rule"),
        ([rule("a", "flag")], "the last rule, 'a', has a `when`, so some rows might get no answer"),
        ([{"name": "a"}], "rule 'a': nothing for output 'score'; give each output one"),
        ([rule("a", score="")], "rule 'a': nothing for output 'score'"),
        ([rule("a", scor=1)], "the model has no output 'scor'; did you mean 'score'?"),
        ([rule("a", other=1)], "the model has no output 'other'; its outputs are 'score'"),
        (
            [rule(f"r{i}") for i in range(MAX_RULES + 1)],
            f"{MAX_RULES + 1} rules; expected at most {MAX_RULES}",
        ),
    ],
)
def test_rules_that_leave_something_open_are_refused(rules, message):
    assert message in refusal(*rules)


def test_expressions_are_counted_before_any_is_compiled():
    outputs = [TensorShape(f"y{i}", "FP32", (-1,)) for i in range(100)]
    rules = [rule(f"r{i}", **{output.name: "zzz" for output in outputs}) for i in range(3)]
    assert f"300 expressions; expected at most {MAX_EXPRESSIONS}" in refusal(*rules, outputs=outputs)


def test_each_rule_may_be_cheap_and_all_together_too_dear():
    when = "words.exists(w, w == 'a')"
    compiled(rule("one", when), rule("last"))
    said = refusal(*(rule(f"r{i}", when) for i in range(8)), rule("last"))
    assert "all rules together: a row may take" in said
    assert f"expected at most {MAX_STEPS}" in said
    assert "the largest variable 'words'" in said


def test_a_constant_that_is_too_dear_is_not_computed_to_find_that_out():
    """It would take 3 GB."""
    endless = f"['{'a' * 3000}']" + ".map(x, x + x)" * 20 + "[0] == ''"
    assert "rule 'first': when: " in (said := refusal(rule("first", endless), rule("last")))
    assert "a row may take" in said


def test_not_finite_constants_follow_the_models_policy():
    nan = rule(score="0.0 / 0.0")
    assert compiled(nan) is not None
    assert "nan is out of the range of output 'score'" in refusal(nan, nan={"outputs": "reject"})
    assert "out of the range" in refusal(rule(score=1e39), nan={"outputs": "reject"})


def test_without_a_batch_an_expression_sees_the_whole_request():
    inputs = [
        TensorShape("x", "FP32", (2, 3)),
        TensorShape("one", "FP32", (1, 1)),
        TensorShape("s", "INT64", ()),
    ]
    outputs = [TensorShape("y", "FP32", (2, 3)), TensorShape("z", "FP32", ())]
    assert compiled(rule(y="x", z="x[1][2] * one + double(s)"), inputs=inputs, outputs=outputs, batched=False)
    said = refusal(rule(y="x[0]", z="1"), inputs=inputs, outputs=outputs, batched=False)
    assert "it gives list(double); the output takes list(list(double)) with 2 x 3 elements" in said


# Names.

VIEWS = """
features:
  views:
    - {name: airport, version: 1, entity: [{name: id, datatype: BYTES}], ttl: 60s, stale_ttl: 60s,
       fields: [{name: delay, datatype: FP32, default: 0},
                {name: spot, datatype: FP32, width: 2, default: 0}]}
    - {name: plane, version: 2, entity: [{name: tail, datatype: BYTES}], ttl: 60s, stale_ttl: 60s,
       fields: [{name: delay, datatype: FP32, default: 0}, {name: seats, datatype: FP32, default: 0}]}
  inputs:
    - input: x
      columns:
        - {view: airport@1, entity: {id: origin}}
        - {view: airport@1, entity: {id: dest}, fields: [delay]}
        - {view: plane@2}
        - {request: {name: hours}}
        - {request: {name: "days/left", width: 2}}
    - input: seats
      columns: [{view: plane@2, fields: [seats]}]
"""
BOUND = [
    TensorShape("x", "FP32", (-1, 9)),
    TensorShape("seats", "FP32", (-1, 1)),
    TensorShape("own", "INT64", (-1, 1)),
]


def _variables(inputs=BOUND, text=VIEWS, *, batched=True) -> Variables:
    return Variables(serving_spec.parse(text, source="").features, inputs, batched=batched)


def test_columns_are_found_under_their_names_where_they_lie():
    known = _variables().known
    assert {
        name: (one.input, one.columns and (one.columns.first, one.columns.width), one.type)
        for name, one in known.items()
    } == {
        "inputs.x": (0, None, "list(double)"),
        "x": (0, None, "list(double)"),
        "origin.airport.delay": (0, (0, 1), "double"),
        "origin.airport.spot": (0, (1, 2), "list(double)"),
        "airport.spot": (0, (1, 2), "list(double)"),
        "spot": (0, (1, 2), "list(double)"),
        "dest.airport.delay": (0, (3, 1), "double"),
        "tail.plane.delay": (0, (4, 1), "double"),
        "plane.delay": (0, (4, 1), "double"),
        "tail.plane.seats": (0, (5, 1), "double"),
        "plane.seats": (0, (5, 1), "double"),
        "seats": (0, (5, 1), "double"),
        "inputs.seats": (1, None, "double"),
        "request.hours": (0, (6, 1), "double"),
        "hours": (0, (6, 1), "double"),
        "request.days_left": (0, (7, 2), "list(double)"),
        "days_left": (0, (7, 2), "list(double)"),
        "inputs.own": (2, None, "int"),
        "own": (2, None, "int"),
    }


def test_names_of_several_things_say_which_there_are():
    serving = serving_spec.parse(VIEWS, source="")
    new = serving.fallback.rules.add(name="only")
    new.outputs["score"] = "delay"
    meanings = "origin.airport.delay, dest.airport.delay, plane.delay"
    with pytest.raises(RuleError, match=f"'delay' means several things here: {meanings}; write which"):
        compile_rules(serving, BOUND, OUTPUTS, batched=True)
    new.outputs["score"] = "plane.delay + dest.airport.delay"
    assert compile_rules(serving, BOUND, OUTPUTS, batched=True) is not None


def test_inputs_whose_names_look_alike_are_told_apart_by_what_they_are():
    variables = Variables(
        ServingSpec().features,
        [TensorShape("a/b", "FP32", (-1,)), TensorShape("a.b", "FP32", (-1,))],
        batched=True,
    )
    assert variables.known == {}
    assert variables.ambiguous["a_b"] == ["input 'a/b'", "input 'a.b'"]


def test_without_a_batch_columns_are_lists():
    known = _variables([shape._replace(shape=(4, *shape.shape[1:])) for shape in BOUND], batched=False).known
    assert known["plane.seats"].type == "list(double)"
    assert known["spot"].type == "list(list(double))"
    # The input has a dimension more than its only column: `seats` could be either.
    assert known["inputs.seats"].type == "list(list(double))"
    assert "seats" not in known


def test_a_whole_view_of_the_most_fields_compiles_quickly():
    """Only what is named is declared to the checker."""
    wide = ", ".join(f"{{name: f{i}, datatype: FP32, default: 0}}" for i in range(2048))
    text = WEATHER.replace("{name: wind, datatype: FP32, default: 0}", wide)
    serving = serving_spec.parse(
        "features:\n  views:\n    - "
        + text.strip().replace("\n", "\n      ")
        + "\n  inputs: [{input: x, columns: [{view: weather@3}]}]\n"
        + "fallback: {rules: [{name: a, outputs: {score: 'f7 + weather.f2047'}}]}",
        source="",
    )
    found = compile_rules(serving, [TensorShape("x", "FP32", (-1, 2048))], OUTPUTS, batched=True)
    assert [variable.name for variable in found.variables] == ["f7", "weather.f2047"]
