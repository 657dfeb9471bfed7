"""serving.yaml: what is read, what is refused and how the refusal helps."""

from __future__ import annotations

import math

import pytest
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos import serving_spec, yaml_message
from hypothesis import given
from hypothesis import strategies as st


def test_both_spellings_of_a_key_mean_the_same():
    snake = serving_spec.parse("batching: {max_batch_size: 8}", source="a")
    camel = serving_spec.parse("batching: {maxBatchSize: 8}", source="b")
    assert snake == camel
    assert snake.batching.max_batch_size == 8


@pytest.mark.parametrize("text", ["", "# nothing\n", "batching:\n", "{}"])
def test_an_empty_file_means_every_default(text):
    assert serving_spec.parse(text, source="serving.yaml") == pb.ServingSpec()


def test_the_champion_may_allow_its_callers_to_be_moved_under_pressure():
    spec = serving_spec.parse("overload: {economy_under_pressure: true}", source="serving.yaml")
    assert spec.overload.economy_under_pressure
    assert serving_spec.parse(serving_spec.dump(spec), source="again") == spec
    with pytest.raises(serving_spec.SpecError, match="expected true or false"):
        serving_spec.parse("overload: {economy_under_pressure: 1}", source="serving.yaml")


@pytest.mark.parametrize("written", ["reject", "REJECT", "NAN_CHOICE_REJECT"])
def test_nan_choices_are_written_by_their_last_word(written):
    spec = serving_spec.parse(f"nan: {{inputs: {written}}}", source="serving.yaml")
    assert spec.nan.inputs == pb.NAN_CHOICE_REJECT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchin: {}", "unknown key 'batchin'; did you mean 'batching'?"),
        ("batching: {max_batch: 3}", "unknown key 'batching.max_batch'; did you mean 'max_batch_size'?"),
        ("zzz: 1", "known here: batching, nan, warmup, session, features"),
        ("1: 2", "unknown key '1'"),
        ("batching: {max_batch_size: '8'}", "batching.max_batch_size is text; expected a whole number"),
        ("batching: {max_batch_size: true}", "is true or false; expected a whole number"),
        ("batching: {max_batch_size: -8}", "out of range"),
        ("batching: {max_batch_size: 8, maxBatchSize: 8}", "once in each spelling"),
        ("batching: {}\nbatching: {}", "'batching' is there twice"),
        ("nan: {inputs: maybe}", "nan.inputs is 'maybe'; expected one of allow, reject"),
        ("warmup: {inputs: [1]}", "warmup.inputs is a list; expected keys and values"),
        ("warmup: {inputs: {x: {values: [.nan]}}}", "NaN"),
        ("warmup: {inputs: {x: {values: 1}}}", "warmup.inputs.x.values is a number; expected a list"),
        (
            "warmup: {inputs: {x: {shape: [1.5]}}}",
            "warmup.inputs.x.shape[0] is a number; expected a whole number",
        ),
        ("- 1", "the file is a list"),
        ("a: &x 1\nb: *x", "aliases are not supported"),
        ("? [1]\n: 2", "a key must be plain text"),
        ("a: [", "not valid YAML"),
        ("x: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("[" * 100_000, "not valid YAML"),
        ("#" * (serving_spec.MAX_BYTES + 1), "expected at most"),
    ],
)
def test_a_mistake_is_refused_by_file_place_and_right_form(text, message):
    with pytest.raises(serving_spec.SpecError) as caught:
        serving_spec.parse(text, source="serving.yaml")
    assert str(caught.value).startswith("serving.yaml: ")
    assert message in str(caught.value)


numbers = st.floats(allow_nan=False, allow_infinity=False)
tensors = st.builds(
    pb.WarmupTensor,
    shape=st.lists(st.integers(-1, 2**40), max_size=4),
    values=st.lists(numbers, max_size=4),
    strings=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"])), max_size=3),
)
specs = st.builds(
    pb.ServingSpec,
    batching=st.builds(pb.Batching, max_batch_size=st.integers(0, 2**32 - 1)),
    nan=st.builds(pb.NanPolicy, inputs=st.sampled_from([0, 1, 2]), outputs=st.sampled_from([0, 1, 2])),
    warmup=st.builds(
        pb.Warmup, inputs=st.dictionaries(st.text("abcxyz_:0/ ", min_size=1), tensors, max_size=3)
    ),
    session=st.builds(pb.Session, intra_op_threads=st.integers(0, 64)),
)


@given(specs)
def test_what_is_dumped_is_read_back_equal(spec):
    again = serving_spec.parse(serving_spec.dump(spec), source="dumped")
    assert again == spec


@given(st.text())
def test_any_text_gives_a_spec_or_a_spec_error(text):
    try:
        spec = serving_spec.parse(text, source="serving.yaml")
    except serving_spec.SpecError:
        return
    assert not any(math.isnan(v) for tensor in spec.warmup.inputs.values() for v in tensor.values)


@pytest.mark.parametrize(
    ("written", "expression"),
    [
        ("'x[0] > 1.0'", "x[0] > 1.0"),
        ("0.5", "0.5"),
        ("1", "1"),
        ("-1e-7", "-1e-7"),  # text, in YAML
        ("-1.0e-7", "-1e-07"),
        ("true", "true"),
        ("no", "false"),
        ("'no'", "no"),
        ("[0, 1]", "[0, 1]"),
        ("[0, 0.5]", "[0.0, 0.5]"),
        ("[[0, 1], [2, 0.5]]", "[[0.0, 1.0], [2.0, 0.5]]"),
        ("[a, 1, b + c]", "[a, 1, b + c]"),
        ("[]", "[]"),
    ],
)
def test_expressions_may_be_written_as_the_values_they_are(written, expression):
    text = f"fallback: {{rules: [{{name: a, when: {written}, outputs: {{y: {written}}}}}]}}"
    rule = serving_spec.parse(text, source="").fallback.rules[0]
    assert (rule.when, rule.outputs["y"]) == (expression, expression)


@pytest.mark.parametrize("written", [".nan", "[0, .inf]", "{a: 1}", "2026-01-01", "[null]"])
def test_what_is_no_expression_is_refused(written):
    with pytest.raises(serving_spec.SpecError, match=r"rules\[0\].outputs.y is .*; expected an expression"):
        serving_spec.parse(f"fallback: {{rules: [{{outputs: {{y: {written}}}}}]}}", source="")


def test_rules_are_written_as_they_are_read():
    text = "fallback: {rules: [{name: a, when: 'x > 1', outputs: {y: 0.5, z: [1, 2]}}, {name: b}]}"
    spec = serving_spec.parse(text, source="")
    assert serving_spec.parse(serving_spec.dump(spec), source="") == spec


def test_what_is_there_twice_is_written_twice():
    """YAML's aliases, which are refused, are what PyYAML makes of one list in two places."""
    same = [1, 2]
    text = yaml_message.dump({"warmup": {"inputs": {"a": {"shape": same}, "b": {"shape": same}}}})
    assert list(serving_spec.parse(text, source="").warmup.inputs["b"].shape) == same
