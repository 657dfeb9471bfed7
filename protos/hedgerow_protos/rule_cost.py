"""What an expression costs at most, found before it is ever evaluated.

A step is a node of the expression, an element of a list, 64 bytes of a text; 10 to 20 ns. `all`,
`exists`, `map` and `filter` cost their body for each element. The library itself stops an evaluation
after 10,000 elements and knows no other bound: each `map(x, x + x)` in a row of them doubles a text.
So sizes are followed through the whole expression, from the largest that every variable may have.

Only what costs no more than the sizes of its operands tell may be used. `matches` may not: the library
compiles its pattern anew for each row, which takes 2 µs for `a*b` and 56 ms for 1000 letters of any
script; nor what asks for the time zone of a place, which is read from a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hedgerow_protos.cel_checked_pb2 import Expr
from hedgerow_protos.rule_variables import Variable

#: Elements of a variable with dimensions that vary; a row that has more goes without the variable.
MOST_VARYING = 1024
#: UTF-8 bytes of a text; a row with a longer one goes without the variable.
MOST_TEXT_BYTES = 4096
_PIECE = 64  # bytes of text that cost a step

#: Functions that rules may call, with those of `math`.
FUNCTIONS = ("size", "contains", "startsWith", "endsWith", "int", "uint", "double", "string", "bool")
_COMPARISONS = frozenset(("_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_"))
_PLAIN = frozenset(("_&&_", "_||_", "!_", "_-_", "_*_", "_/_", "_%_", "-_", "@not_strictly_false"))


class CostError(ValueError):
    """An expression whose cost cannot be bounded; the message says why."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a value may be.

    Attributes:
        count: Elements of a list or map, pieces of a text, 1 for everything else.
        each: An element of a list or map; None for what has none.
    """

    count: int = 1
    each: Size | None = None

    @property
    def steps(self) -> int:
        """What it takes to look at all of it."""
        return self.count * (self.each.steps if self.each is not None else 1) + 1

    def join(self, other: Size) -> Size:
        """What is as large as either."""
        return Size(max(self.count, other.count), _join(self.each, other.each))


_ONE = Size()


def _join(one: Size | None, other: Size | None) -> Size | None:
    if one is None or other is None:
        return one or other
    return one.join(other)


@dataclass(slots=True)
class Cost:
    """An expression's cost.

    Attributes:
        steps: At most, beside those of reading its variables.
        names: The variables that it reads.
    """

    steps: int = 0
    names: set[str] = field(default_factory=set)


def size_of(variable: Variable) -> Size:
    """How large a variable may be."""
    size = Size(MOST_TEXT_BYTES // _PIECE) if variable.kind == "string" else _ONE
    for dim in reversed(variable.dims):
        size = Size(MOST_VARYING if dim < 0 else dim, size)
    return size


def reading(variable: Variable) -> int:
    """Steps of making a variable's value for one row."""
    elements = 1
    for dim in variable.dims:
        elements *= max(dim, 1)
    if min(variable.dims, default=0) < 0:
        elements = max(elements, MOST_VARYING)
    # A text costs as much as four numbers.
    return elements * (4 if variable.kind == "string" else 1)


def cost(expression: Expr, sizes: Mapping[str, Size]) -> Cost:
    """Bounds the cost of an expression.

    Args:
        expression: Type-checked.
        sizes: How large each variable may be.

    Raises:
        CostError: It uses something whose cost is not known from the sizes of what it is given.
    """
    found = Cost()
    walk = _Walk(sizes, found.names)
    found.steps = walk.visit(expression, {})[1]
    return found


class _Walk:
    """Sizes and steps of expressions, innermost first; `scope` has the variables of the macros around."""

    def __init__(self, sizes: Mapping[str, Size], names: set[str]) -> None:
        self._sizes = sizes
        self._names = names

    def visit(self, expression: Expr, scope: Mapping[str, Size]) -> tuple[Size, int]:
        match expression.WhichOneof("kind"):
            case "const_expr":
                constant = expression.const_expr
                text = constant.string_value.encode() or constant.bytes_value
                return Size(1 + len(text) // _PIECE), 1
            case "ident_expr":
                name = expression.ident_expr.name.removeprefix(".")
                if name in scope:
                    return scope[name], 1
                if name not in self._sizes:
                    raise CostError(f"{name!r} is the name of a type, which rules do not use")
                self._names.add(name)
                return self._sizes[name], 1
            case "select_expr":
                size, steps = self.visit(expression.select_expr.operand, scope)
                return size.each or _ONE, steps + 1
            case "call_expr":
                return self._call(expression.call_expr, scope)
            case "list_expr":
                return self._list(expression.list_expr.elements, scope)
            case "struct_expr":
                struct = expression.struct_expr
                if struct.message_name:
                    raise CostError(f"{struct.message_name} is a message, which rules do not use")
                parts = [part for entry in struct.entries for part in (entry.map_key, entry.value)]
                return self._list(parts, scope)
            case "comprehension_expr":
                return self._comprehension(expression.comprehension_expr, scope)
        raise CostError("it holds something that rules do not use")

    def _list(self, elements: Iterable[Expr], scope: Mapping[str, Size]) -> tuple[Size, int]:
        size, steps = Size(0), 1
        for element in elements:
            each, more = self.visit(element, scope)
            size = Size(size.count + 1, _join(size.each, each))
            steps += more + 1
        return size, steps

    def _call(self, call: Expr.Call, scope: Mapping[str, Size]) -> tuple[Size, int]:
        operands = [call.target, *call.args] if call.HasField("target") else call.args
        visited = [self.visit(operand, scope) for operand in operands]
        size, steps = _called(call.function, [size for size, _ in visited])
        return size, 1 + steps + sum(more for _, more in visited)

    def _comprehension(self, loop: Expr.Comprehension, scope: Mapping[str, Size]) -> tuple[Size, int]:
        over, steps = self.visit(loop.iter_range, scope)
        gathered, more = self.visit(loop.accu_init, scope)
        steps += more
        inner = {**scope, loop.iter_var: over.each or _ONE, loop.accu_var: gathered}
        if loop.iter_var2:
            inner[loop.iter_var2] = over.each or _ONE
        each = 2 + self.visit(loop.loop_condition, inner)[1]
        step, more = self.visit(loop.loop_step, inner)
        each += more
        if loop.accu_init.HasField("list_expr"):
            # `map` and `filter` add one element each time, to a copy of those before (measured: 1000
            # elements take 16 ms, a hundred times what 100 take).
            gathered = dataclasses.replace(step, count=over.count * step.count)
            each += gathered.steps
        result, more = self.visit(loop.result, {**scope, loop.accu_var: gathered})
        return result, steps + over.count * each + more


def _called(name: str, sizes: Sequence[Size]) -> tuple[Size, int]:
    """The size of what a function or operator returns, and the steps that it takes itself."""
    if name in _PLAIN:
        return _ONE, 0
    if name in _COMPARISONS:
        # Neither goes on where the shorter one ends.
        return _ONE, min(size.steps for size in sizes)
    first = sizes[0] if sizes else _ONE
    match name:
        case "_+_":
            whole = Size(first.count + sizes[1].count, _join(first.each, sizes[1].each))
            return whole, whole.count
        case "_?_:_":
            return sizes[1].join(sizes[2]), 0
        case "_[_]":
            return first.each or _ONE, 0
        case "@in":
            among = sizes[1]
            return _ONE, among.count * (1 + min(first.steps, (among.each or _ONE).steps))
        case "contains":
            # Text against text: 4 ns for each place where the one may begin in the other (measured).
            return _ONE, 16 * first.count * sizes[1].count
        case "startsWith" | "endsWith":
            return _ONE, sizes[1].count
        case "size":
            return _ONE, first.count if first.each is None else 0
        case "int" | "uint" | "double" | "bool":
            return _ONE, first.count
        case "string":
            return first, first.count
    if name.startswith("math."):
        return _ONE, sum(size.count for size in sizes)
    raise CostError(
        f"`{name}` is not for rules; they have {', '.join(FUNCTIONS)}, the functions of `math`, and the "
        "macros all, exists, exists_one, map, filter and has"
    )
