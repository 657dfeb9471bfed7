"""CEL expressions: parsed, type-checked, bounded in cost and evaluated by Google's CEL for C++.

The only file that knows the library (`cel-expr-python`), and what one must know of it:

- It finds an error at evaluation by a value, not an exception; an exhausted budget by an exception.
- It cuts a text at its first NUL and dies on text that is not Unicode; who makes the variables' values
  keeps both away.
- It holds the GIL while it works, and takes 16 MB in a process; hence it is imported where there are rules.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from hedgerow_protos import rule_cost
from hedgerow_protos.cel_checked_pb2 import CheckedExpr, Expr, Packed
from hedgerow_protos.rule_cost import CostError, Size
from hedgerow_protos.rule_variables import Variable, Variables

#: Values of an evaluation's variables, as the library takes them.
Activation = Any


class ExpressionError(ValueError):
    """An expression that does not compile; the message says where and why."""


class EvaluationError(Exception):
    """An expression has no value for this row: an index is not there, a whole number overflows."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression.

    Attributes:
        type: Of its values, as CEL writes types: `double`, `list(int)`.
        names: The variables that it reads.
        steps: What it costs at most, beside reading them.
        literal: Where it is a list written out, how many elements that has, and the first of them, and so
            on; empty for every other expression.
    """

    type: str
    names: frozenset[str]
    steps: int
    literal: tuple[int, ...]
    _program: Any
    _error: Any

    def evaluate(self, activation: Activation) -> object:
        """Its value for one row: bool, int, float, str, or lists of them.

        Raises:
            EvaluationError: It has none.
        """
        try:
            value = self._program.eval(activation)
        except RuntimeError as error:
            raise EvaluationError(_plain(str(error))) from None
        plain: object = value.plain_value()
        # An error comes as its text.
        if type(plain) is str and (self.type != "string" or value.type() == self._error):
            raise EvaluationError(_plain(plain))
        return plain


class Environment:
    """Compiles the expressions of one model version.

    Args:
        variables: What they may name.
        texts: All expressions that will be compiled; only variables that appear in them are declared, as a
            view may have thousands.

    Raises:
        ModuleNotFoundError: The library is not installed.
    """

    def __init__(self, variables: Variables, texts: Iterable[str]) -> None:
        from cel_expr_python import cel  # noqa: PLC0415 - see above
        from cel_expr_python.ext import ext_math  # noqa: PLC0415

        self._variables = variables
        words = {word for text in texts for word in re.findall(r"\w+", text)}
        declared = {
            name: variable for name, variable in variables.known.items() if words.issuperset(name.split("."))
        }
        self._sizes: dict[str, Size] = {
            name: rule_cost.size_of(variable) for name, variable in declared.items()
        }
        self._error = cel.Type.ERROR
        self._cel = cel.NewEnv(
            variables={name: _type(cel.Type, variable) for name, variable in declared.items()},
            extensions=[ext_math.ExtMath()],
        )

    def activation(self, values: Mapping[str, object]) -> Activation:
        """Makes one row's values ready for several expressions; those that read one that is missing fail."""
        return self._cel.Activation(values)

    def compile(self, text: str) -> Expression:
        """Compiles an expression.

        Raises:
            ExpressionError: It is not CEL, names what is not there, its types do not fit, or its cost
                cannot be bounded.
        """
        if "\0" in text:
            raise ExpressionError("it holds a NUL character")
        try:
            program = self._cel.compile(text)
            checked = CheckedExpr.FromString(Packed.FromString(program.serialize()).value)
        except RuntimeError as error:
            raise ExpressionError(self._explain(str(error), text)) from None
        except DecodeError:
            raise ExpressionError("it is nested too deeply") from None
        try:
            cost = rule_cost.cost(checked.expr, self._sizes)
        except CostError as error:
            raise ExpressionError(str(error)) from None
        if any(kind.HasField("dyn") for kind in checked.type_map.values()):
            raise ExpressionError(
                "it mixes types, so that they could be checked only when it is evaluated; convert with "
                "int(), double() or string(), and write 1.0 where other numbers have a point"
            )
        kind = program.return_type().name().lower().replace("<", "(").replace(">", ")")
        return Expression(
            kind, frozenset(cost.names), cost.steps, _literal(checked.expr), program, self._error
        )

    def _explain(self, message: str, text: str) -> str:
        """The library's first complaint, with what to do about it."""
        if "recursion" in message:
            return (
                "it is nested more than 32 deep, which is the most; each term of a sum counts, unless "
                "parentheses group them"
            )
        found = re.search(r"ERROR: <input>:(\d+):(\d+): (.*)", message)
        if found is None:
            return _plain(message)
        line, column, what = int(found[1]), int(found[2]), found[3].removesuffix(" [INVALID_ARGUMENT]")
        place = f"line {line}, column {column}: " if "\n" in text.strip() else f"column {column}: "
        if unknown := re.match(r"undeclared reference to '([^']*)'", what):
            return place + self._unknown(unknown[1])
        if overload := re.match(r"found no matching overload for '([^']*)' applied to '([^']*)'", what):
            return place + _no_overload(overload[1], overload[2])
        # What the grammar would have taken instead is a list of all that it has.
        return place + re.sub(r" expecting \{.*\}$", "", what)[:300]

    def _unknown(self, name: str) -> str:
        if meanings := self._variables.ambiguous.get(name):
            return f"{name!r} means several things here: {', '.join(meanings)}; write which"
        # What stands before the last point says where to look; without one, short names say more than long.
        before, _, last = name.rpartition(".")
        known = list(self._variables.known)
        among = [one for one in known if one.rpartition(".")[0] == before] or known
        if close := difflib.get_close_matches(last, [one.rpartition(".")[2] for one in among], n=1):
            meant = next(one for one in among if one.rpartition(".")[2] == close[0])
            return f"unknown variable {name!r}; did you mean {meant!r}?"
        listed = ", ".join(sorted(among)[:20]) + (", ..." if len(among) > 20 else "")
        return (
            f"unknown variable or function {name!r}; variables here: {listed or 'none'}"
            " (text is written in quotes: 'blue')"
        )


def _type(types: Any, variable: Variable) -> Any:
    kind = getattr(types, variable.kind.upper())
    for _ in variable.dims:
        kind = types.List(kind)
    return kind


def _no_overload(function: str, types: str) -> str:
    name = re.sub(r"^_?(.+?)_?$", r"\1", function) if function.startswith("_") else function
    name = {"?_:": "? :", "[_]": "[ ]", "@in": "in", "-": "-"}.get(name, name)
    hint = ""
    if "double" in types and "int" in types:
        hint = "; a number beside one with a point needs a point too: 1.0, or double(n)"
    elif "uint" in types:
        hint = "; a number beside an unsigned one is written 1u, or the other is converted with int()"
    return f"`{name}` does not take {types.removeprefix('(').removesuffix(')')}{hint}"


def _plain(message: str) -> str:
    """A message of the library without its codes, on one line."""
    text = re.sub(r"^[A-Z_]+: | \[[A-Z_]+\]$", "", message.strip())
    return " ".join(text.split())[:300]


def _literal(expression: Expr) -> tuple[int, ...]:
    if not expression.HasField("list_expr"):
        return ()
    elements = expression.list_expr.elements
    return (len(elements), *(_literal(elements[0]) if elements else ()))
