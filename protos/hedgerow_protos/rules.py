"""Fallback rules of a serving.yaml, compiled: what answers for a model that cannot.

Asked when a version is published, when the control plane tries it, and when a server loads it:
one answer everywhere.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hedgerow_protos import rule_cost
from hedgerow_protos.hedgerow_control_pb2 import NAN_CHOICE_REJECT, FallbackRule, ServingSpec
from hedgerow_protos.rule_expression import Environment, EvaluationError, Expression, ExpressionError
from hedgerow_protos.rule_outputs import Row, RuleOutput
from hedgerow_protos.rule_variables import Variable, Variables
from hedgerow_protos.tensor_shape import TensorShape

#: What one version may have at most.
MAX_RULES = 32
MAX_EXPRESSIONS = 256
MAX_CHARACTERS = 4096
#: Steps (`rule_cost`) that a row may take, all rules together: 0.5 to 1 ms.
MAX_STEPS = 50_000

#: In replies, logs and metric labels.
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class RuleError(ValueError):
    """Rules that cannot work; the message names rule and expression, what is wrong and what is expected."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        name: For replies, log and metrics.
        when: Whether it answers a row; None: always.
        outputs: For each output of the model, in its order.
        constants: The rows of those that read no variable, None for the others.
    """

    name: str
    when: Expression | None
    outputs: tuple[Expression, ...]
    constants: tuple[Row | None, ...]


@dataclass(frozen=True, slots=True)
class CompiledRules:
    """The rules of one version.

    Attributes:
        rules: In order; the last has no `when`.
        outputs: Of the model, in its order.
        variables: What the rules read.
        steps: What one row costs at most, all rules together.
        environment: Makes what their expressions are evaluated with.
    """

    rules: tuple[Rule, ...]
    outputs: tuple[RuleOutput, ...]
    variables: tuple[Variable, ...]
    steps: int
    environment: Environment


def compile_rules(
    serving: ServingSpec, inputs: Sequence[TensorShape], outputs: Sequence[TensorShape], *, batched: bool
) -> CompiledRules | None:
    """Compiles and checks the rules of a version.

    Args:
        serving: Its spec; the features in it were accepted by `check_binding`.
        inputs: All inputs of the model.
        outputs: All its outputs.
        batched: Whether dimension 0 of them all is the batch, so that rules answer row by row; else they
            answer a request at a time.

    Returns:
        None without rules.

    Raises:
        RuleError: They cannot work.
        ModuleNotFoundError: The CEL library is not installed.
    """
    rules = serving.fallback.rules
    if not rules:
        return None
    _check_names(rules, [output.name for output in outputs])
    texts = [text for rule in rules for text in (rule.when, *rule.outputs.values()) if text]
    if len(texts) > MAX_EXPRESSIONS:
        raise RuleError(f"fallback.rules: {len(texts)} expressions; expected at most {MAX_EXPRESSIONS}")
    variables = Variables(serving.features, inputs, batched=batched)
    environment = Environment(variables, texts)
    finite = serving.nan.outputs == NAN_CHOICE_REJECT
    takers = tuple(RuleOutput(shape, batched=batched, finite=finite) for shape in outputs)
    compiled = tuple(_compile(rule, takers, environment) for rule in rules)
    names = {name for rule in compiled for expression in _expressions(rule) for name in expression.names}
    read = tuple(variables.known[name] for name in sorted(names))
    return CompiledRules(compiled, takers, read, _steps(compiled, read), environment)


def _check_names(rules: Sequence[FallbackRule], outputs: Sequence[str]) -> None:
    """Checks what can be checked without looking at an expression."""
    if len(rules) > MAX_RULES:
        raise RuleError(f"fallback.rules: {len(rules)} rules; expected at most {MAX_RULES}")
    seen: set[str] = set()
    for index, rule in enumerate(rules):
        if not _NAME.fullmatch(rule.name):
            raise RuleError(
                f"fallback.rules[{index}]: {rule.name[:100]!r} cannot name a rule: use 1 to 63 of a-z, 0-9, "
                "'_' and '-', a letter or digit first"
            )
        place = f"fallback.rules: rule {rule.name!r}"
        if rule.name in seen:
            raise RuleError(f"{place} is there twice; give each a name of its own")
        seen.add(rule.name)
        for name in rule.outputs:
            if name not in outputs:
                raise RuleError(f"{place}: the model has no output {name[:100]!r}{_hint(name, outputs)}")
        if missing := [name for name in outputs if not rule.outputs.get(name)]:
            raise RuleError(
                f"{place}: nothing for output {', '.join(map(repr, missing[:10]))}; give each output one"
            )
        for what, text in (("when", rule.when), *rule.outputs.items()):
            if len(text) > MAX_CHARACTERS:
                raise RuleError(
                    f"{place}: {what} has {len(text)} characters; expected at most {MAX_CHARACTERS}"
                )
    if rules[-1].when:
        raise RuleError(
            f"fallback.rules: the last rule, {rules[-1].name!r}, has a `when`, so some rows might get no "
            "answer; let the last one be without"
        )


def _compile(rule: FallbackRule, outputs: Sequence[RuleOutput], environment: Environment) -> Rule:
    place = f"fallback.rules: rule {rule.name!r}"
    when = None
    if rule.when:
        when = _expression(rule.when, f"{place}: when", environment)
        if when.type != "bool":
            raise RuleError(f"{place}: when: {_quoted(rule.when)}: it gives {when.type}; expected a bool")
    expressions, constants = [], []
    for output in outputs:
        text = rule.outputs[output.name]
        here = f"{place}: output {output.name!r}"
        expression = _expression(text, here, environment)
        if problem := output.problem(expression):
            raise RuleError(f"{here}: {_quoted(text)}: {problem}")
        expressions.append(expression)
        constants.append(_constant(expression, output, f"{here}: {_quoted(text)}", environment))
    return Rule(rule.name, when, tuple(expressions), tuple(constants))


def _expression(text: str, place: str, environment: Environment) -> Expression:
    try:
        expression = environment.compile(text)
    except ExpressionError as error:
        raise RuleError(f"{place}: {_quoted(text)}: {error}") from None
    if expression.steps > MAX_STEPS:
        raise RuleError(f"{place}: {_quoted(text)}: {_too_dear(expression.steps)}")
    if not expression.names:
        try:
            expression.evaluate(environment.activation({}))
        except EvaluationError as error:
            raise RuleError(f"{place}: {_quoted(text)}: it fails for every row: {error}") from None
    return expression


def _constant(expression: Expression, output: RuleOutput, place: str, environment: Environment) -> Row | None:
    if expression.names:
        return None
    try:
        return output.row(expression.evaluate(environment.activation({})))
    except EvaluationError as error:
        raise RuleError(f"{place}: {error}") from None


def _steps(rules: Sequence[Rule], variables: Iterable[Variable]) -> int:
    """What a row costs; each variable is made once."""
    by_variable = {variable.name: rule_cost.reading(variable) for variable in variables}
    by_rule = {rule.name: sum(one.steps for one in _expressions(rule) if one.names) for rule in rules}
    steps = sum(by_variable.values()) + sum(by_rule.values())
    if steps > MAX_STEPS:
        dearest = max(by_rule, key=by_rule.__getitem__)
        largest = max(by_variable, key=by_variable.__getitem__)
        raise RuleError(
            f"fallback.rules: all rules together: {_too_dear(steps)}. The dearest rule is {dearest!r} with "
            f"{by_rule[dearest]}, the largest variable {largest!r} with {by_variable[largest]}"
        )
    return steps


def _expressions(rule: Rule) -> Iterable[Expression]:
    return (*(() if rule.when is None else (rule.when,)), *rule.outputs)


def _too_dear(steps: int) -> str:
    shown = f"{steps}" if steps < 10**12 else "more than 10^12"
    return (
        f"a row may take {shown} steps; expected at most {MAX_STEPS} (a list whose size varies counts as "
        f"{rule_cost.MOST_VARYING} elements; map and filter cost the square of their elements)"
    )


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return f'"{line}"' if len(line) <= 100 else f'"{line[:97]}..."'


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (
        f"; did you mean {close[0]!r}?" if close else f"; its outputs are {', '.join(map(repr, known[:20]))}"
    )
