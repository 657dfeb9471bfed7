"""What a rule can speak of: the inputs of a model, and the columns of those bound to features, by name.

Each is there under one or two names. The long one always works: `inputs.amount` for an input,
`airport.dep_delay` for a view's field (`origin.airport.dep_delay` where a model reads one view by
several ids), `request.hours` for a request's column. The short one, `amount` or `dep_delay`, works where it
means one thing. CEL's names are letters, digits and `_`; other characters of a name are written `_`
(`dense/x` is `dense_x`), and a name that CEL keeps for itself gets a `_` behind it (`in_`).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

from hedgerow_protos.feature_binding import selected_fields
from hedgerow_protos.feature_view import view_ref
from hedgerow_protos.hedgerow_control_pb2 import FeatureInput, Features
from hedgerow_protos.tensor_shape import TensorShape

#: Literals, reserved words and names of types in the CEL specification, and what the checker declares.
# fmt: off
_TAKEN = frozenset((
    "as", "bool", "break", "bytes", "const", "continue", "double", "dyn", "else", "false", "for",
    "function", "if", "import", "in", "int", "let", "list", "loop", "map", "namespace", "null", "null_type",
    "package", "return", "string", "true", "type", "uint", "var", "void", "while",
))
# fmt: on
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_]")

_KINDS = {"BOOL": "bool", "BYTES": "string", "UINT64": "uint", "FP16": "double", "FP32": "double"}
_KINDS |= {"FP64": "double"}


def kind_of(datatype: str) -> str:
    """CEL's type for an element of a tensor; every whole number but UINT64 fits its `int`."""
    return _KINDS.get(datatype, "int")


@dataclass(frozen=True, slots=True)
class Columns:
    """Some neighbouring columns of a bound input.

    Attributes:
        first: The first of them.
        width: How many.
        of: How many the input has; one that a caller sends with another number has no such columns.
    """

    first: int
    width: int
    of: int


@dataclass(frozen=True, slots=True)
class Variable:
    """Something that expressions name.

    Attributes:
        name: In expressions.
        what: What it is, for people.
        input: Position among the model's inputs.
        columns: Of a bound input; None: the whole input.
        kind: CEL's type of an element: bool, int, uint, double or string.
        dims: Of what one row has; -1 for one that varies. Empty for a single element.
    """

    name: str
    what: str
    input: int
    columns: Columns | None
    kind: str
    dims: tuple[int, ...]

    @property
    def type(self) -> str:
        """CEL's type: the kind itself, or lists of it."""
        return "list(" * len(self.dims) + self.kind + ")" * len(self.dims)


class Variables:
    """The variables of one model version.

    Args:
        features: From its serving spec, accepted by `check_binding`.
        inputs: All inputs of the model.
        batched: Whether dimension 0 of each is the batch, so that an expression sees one row of it;
            else it sees all of it.

    Attributes:
        known: By name.
        ambiguous: Names that mean several things, and for each of these a name that means it alone, or,
            where there is none, what it is.
    """

    def __init__(self, features: Features, inputs: Sequence[TensorShape], *, batched: bool) -> None:
        self.known: dict[str, Variable] = {}
        self.ambiguous: dict[str, list[str]] = {}
        found: dict[str, dict[Hashable, tuple[list[str], Variable]]] = {}
        bound = {entry.input: entry for entry in features.inputs}
        for position, shape in enumerate(inputs):
            entry = bound.get(shape.name)
            for identity, names, variable in _named(position, shape, entry, features, batched=batched):
                for name in names:
                    # What lies in several inputs is the same in all of them: the first will do.
                    found.setdefault(name, {}).setdefault(identity, (names, variable))
        for name, meanings in found.items():
            if len(meanings) == 1:
                ((_, variable),) = meanings.values()
                self.known[name] = replace(variable, name=name)
                continue
            self.ambiguous[name] = [
                next((short for short in reversed(names) if len(found[short]) == 1), variable.what)
                for names, variable in meanings.values()
            ]


_Named = tuple[Hashable, list[str], Variable]


def _named(
    position: int, shape: TensorShape, entry: FeatureInput | None, features: Features, *, batched: bool
) -> Iterator[_Named]:
    """What an input holds: an identity, equal where the values always are, names, the longest first."""
    name = _identifier(shape.name)
    kind = kind_of(shape.datatype)
    whole = Variable("", f"input {shape.name!r}", position, None, kind, _row(shape.shape, batched=batched))
    columns = list(_columns(entry, features)) if entry is not None else []
    of = sum(width for _, _, _, width in columns)
    # The only column of an input is the input.
    identity = columns[0][0] if batched and len(columns) == 1 and of == 1 else ("input", shape.name)
    yield identity, [f"inputs.{name}", name], whole
    first = 0
    for identity, names, what, width in columns:
        dims = (*shape.shape[:1], *((width,) if width > 1 else ()))
        variable = Variable("", what, position, Columns(first, width, of), kind, _row(dims, batched=batched))
        yield identity, names, variable
        first += width


def _columns(entry: FeatureInput, features: Features) -> Iterator[tuple[Hashable, list[str], str, int]]:
    """The columns of a bound input, left to right: identity, names, what it is, width."""
    views = {view_ref(view): view for view in features.views}
    for column in entry.columns:
        if column.HasField("request"):
            name = _identifier(column.request.name)
            what = f"request column {column.request.name!r}"
            yield ("request", column.request.name), [f"request.{name}", name], what, column.request.width or 1
            continue
        view = views[column.view]
        ids = tuple(column.entity.get(key.name) or key.name for key in view.entity)
        by = _identifier("_".join(ids))
        widths = {field.name: field.width or 1 for field in view.fields}
        of = _identifier(view.name)
        for field in selected_fields(column, view):
            name = _identifier(field)
            names = [f"{by}.{of}.{name}", f"{of}.{name}", name]
            yield ("view", column.view, ids, field), names, f"{field} of {column.view}", widths[field]


def _row(shape: tuple[int, ...], *, batched: bool) -> tuple[int, ...]:
    """The dimensions of what an expression sees; none where that is one element."""
    dims = shape[1:] if batched else shape
    return () if all(size == 1 for size in dims) else dims


def _identifier(name: str) -> str:
    safe = _NOT_IN_NAMES.sub("_", name)
    if not safe or safe[0].isdigit():
        safe = f"_{safe}"
    return f"{safe}_" if safe in _TAKEN else safe
