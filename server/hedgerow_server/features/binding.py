"""How a model's bound inputs are laid out from rows of views and from tensors of the request.

Worked out once when a version is loaded. A row's fields lie in it as they lie in
a tensor, so that laying out is copying runs of bytes: one run where a column
takes a whole row, or neighbours in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from hedgerow_protos.feature_binding import (
    BindingError,
    caller_tensors,
    check_binding,
    selected_fields,
)
from hedgerow_protos.feature_entity import EntityError
from hedgerow_protos.feature_view import view_ref
from hedgerow_protos.hedgerow_control_pb2 import FeatureColumn, Features, FeatureView

from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.refusal import LoadRefused
from hedgerow_server.engine.signature import Signature, TensorSpec
from hedgerow_server.engine.work import Part
from hedgerow_server.errors import InvalidTensor
from hedgerow_server.features.view import View

#: Finds the one `View` of a definition, which all models that bind it share.
FindView = Callable[[FeatureView], View]


@dataclass(frozen=True, slots=True)
class Lookup:
    """Entities of one view, named by some of the callers' tensors.

    `keys` are positions in `Binding.callers`, in the order of the view's entity keys.
    """

    view: View
    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes in each row of an input.

    Attributes:
        lookup: Position of the lookup whose rows it comes from; None: from the request.
        first: Where it begins in that row; for the request, the position in `Binding.callers`.
        size: Bytes.
        texts: For inputs of text: the fields, in place of bytes.
    """

    lookup: int | None
    first: int
    size: int
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BoundInput:
    """One input of the model and the pieces of its rows, left to right; `size` is the bytes of one row.

    `position` is that of the input in the model, `source` that of an unbound one in `Binding.callers`.
    """

    position: int
    spec: TensorSpec
    size: int
    width: int
    pieces: tuple[Piece, ...]
    source: int | None = None


class Binding:
    """A version's inputs, as callers who send ids see them, and how they become the model's.

    Args:
        features: From the serving spec.
        signature: Of the model.
        find_view: Finds or makes the views.

    Attributes:
        callers: What callers send in place of the model's inputs: ids, columns, and the inputs that
            are not bound.
        marks: Names that tell a request which brings ids from one which brings the inputs themselves.
        lookups: What is asked of the views.

    Raises:
        LoadRefused: It does not fit the model.
    """

    def __init__(self, features: Features, signature: Signature, find_view: FindView) -> None:
        shapes = signature.input_shapes
        try:
            check_binding(features, shapes)
        except BindingError as error:
            raise LoadRefused(str(error)) from error
        tensors = caller_tensors(features, shapes)
        bound = {entry.input: entry for entry in features.inputs}
        unbound = [spec for spec in signature.inputs if spec.name not in bound]
        # Of a model without a batch dimension.
        rows = max((spec.shape[0] for spec in signature.inputs if spec.name in bound), default=-1)
        self._fixed_rows = max(rows, 0)
        self.marks = frozenset(tensor.name for tensor in tensors)
        self.callers: tuple[TensorSpec, ...] = (
            *(
                TensorSpec(tensor.name, DATATYPES[tensor.datatype], (rows, tensor.width))
                for tensor in tensors
            ),
            *unbound,
        )
        self._columns = len(tensors)
        self._at = {spec.name: position for position, spec in enumerate(self.callers)}
        self._views = {view_ref(view): find_view(view) for view in features.views}
        self._ids = frozenset(self._at[tensor.name] for tensor in tensors if tensor.entity)
        lookups: dict[tuple[str, tuple[int, ...]], int] = {}
        self._inputs = tuple(
            self._bind(position, spec, bound[spec.name].columns, lookups)
            if spec.name in bound
            else BoundInput(position, spec, 0, 0, (), self._at[spec.name])
            for position, spec in enumerate(signature.inputs)
        )
        self.lookups = tuple(Lookup(self._views[ref], keys) for ref, keys in lookups)

    def __repr__(self) -> str:
        views = ", ".join(lookup.view.ref for lookup in self.lookups)
        return f"<Binding of {', '.join(sorted(self.marks))} by {views}>"

    def _bind(
        self,
        position: int,
        spec: TensorSpec,
        columns: Sequence[FeatureColumn],
        lookups: dict[tuple[str, tuple[int, ...]], int],
    ) -> BoundInput:
        pieces: list[Piece] = []
        width = 0
        itemsize = spec.datatype.itemsize
        for column in columns:
            if column.HasField("request"):
                wide = column.request.width or 1
                pieces.append(Piece(None, self._at[column.request.name], wide * itemsize))
                width += wide
                continue
            view = self._views[column.view]
            keys = tuple(self._at[column.entity.get(key.name) or key.name] for key in view.spec.entity)
            lookup = lookups.setdefault((column.view, keys), len(lookups))
            names = selected_fields(column, view.spec)
            if not itemsize:
                pieces.append(Piece(lookup, 0, 0, tuple(names)))
                width += len(names)
                continue
            for name in names:
                assert view.rows.dtype.fields is not None
                kind, first = view.rows.dtype.fields[name][:2]
                width += kind.itemsize // itemsize
                last = pieces[-1] if pieces else None
                if last is not None and last.lookup == lookup and last.first + last.size == first:
                    pieces[-1] = Piece(lookup, last.first, last.size + kind.itemsize)
                else:
                    pieces.append(Piece(lookup, first, kind.itemsize))
        return BoundInput(position, spec, width * itemsize, width, tuple(pieces))

    def keys(self, parts: Sequence[Part], shapes: Sequence[tuple[int, ...]], most: int) -> list[list[bytes]]:
        """The cache keys of each lookup's entities, a row each.

        Args:
            parts: What the request sent, in the order of `callers`.
            shapes: Of these.
            most: Rows that one request may have.

        Raises:
            InvalidTensor: An id is empty or too long; or there are too many, none, or not as many
                as rows of the other columns.
        """
        rows = shapes[0][0]
        for spec, shape in zip(self.callers[: self._columns], shapes, strict=False):
            if shape[0] != rows:
                raise InvalidTensor(
                    f"input {spec.name!r} has {shape[0]} rows, {self.callers[0].name!r} has {rows}; "
                    "send one row for each entity"
                )
        fixed = self._fixed_rows
        if rows == 0 or rows != (fixed or rows):
            raise InvalidTensor(f"the request names {rows} entities; the model takes {fixed or 'at least 1'}")
        if rows > most:
            raise InvalidTensor(
                f"the request names {rows} entities; this server looks up {most} for one request. "
                "Send fewer rows at once, or raise features.max_entities"
            )
        columns = {at: _values(parts[at]) for at in self._ids}
        try:
            return [
                lookup.view.cached.keys(
                    lookup.view.entities.encode_columns([columns[at] for at in lookup.keys])
                )
                for lookup in self.lookups
            ]
        except EntityError as error:
            raise InvalidTensor(str(error)) from None

    def lay_out(
        self, rows: Sequence[Sequence[bytes]], parts: Sequence[Part], shapes: Sequence[tuple[int, ...]]
    ) -> tuple[list[Part], list[tuple[int, ...]]]:
        """The model's inputs.

        Args:
            rows: For each lookup, the row of each entity.
            parts: What the request sent, in the order of `callers`.
            shapes: Of these parts.

        Returns:
            Parts and shapes in the order of the model's inputs.
        """
        laid: list[Part] = []
        laid_shapes: list[tuple[int, ...]] = []
        for bound in self._inputs:
            if bound.source is not None:
                laid.append(parts[bound.source])
                laid_shapes.append(shapes[bound.source])
                continue
            count = shapes[bound.pieces[0].first][0] if not rows else len(rows[0])
            laid.append(self._fill(bound, count, rows, parts))
            laid_shapes.append((count, bound.width) if len(bound.spec.shape) == 2 else (count,))
        return laid, laid_shapes

    def _fill(
        self, bound: BoundInput, count: int, rows: Sequence[Sequence[bytes]], parts: Sequence[Part]
    ) -> Part:
        if not bound.spec.datatype.itemsize:
            return self._fill_texts(bound, count, rows, parts)
        pieces = bound.pieces
        if count == 1:
            return b"".join(
                [
                    _raw(parts[piece.first])
                    if piece.lookup is None
                    else rows[piece.lookup][0][piece.first : piece.first + piece.size]
                    for piece in pieces
                ]
            )
        only = pieces[0]
        if len(pieces) == 1 and only.lookup is not None and only.size == len(rows[only.lookup][0]):
            view = self.lookups[only.lookup].view
            if not view.rows.texts:
                return b"".join(rows[only.lookup])
        filled = np.empty((count, bound.size), np.uint8)
        at = 0
        for piece in pieces:
            if piece.lookup is None:
                source = np.frombuffer(_raw(parts[piece.first]), np.uint8).reshape(count, piece.size)
            else:
                end = piece.first + piece.size
                cut = b"".join([row[piece.first : end] for row in rows[piece.lookup]])
                source = np.frombuffer(cut, np.uint8).reshape(count, piece.size)
            filled[:, at : at + piece.size] = source
            at += piece.size
        return filled.tobytes()

    def _fill_texts(
        self, bound: BoundInput, count: int, rows: Sequence[Sequence[bytes]], parts: Sequence[Part]
    ) -> Part:
        filled = np.empty((count, bound.width), object)
        at = 0
        for piece in bound.pieces:
            if piece.lookup is None:
                source = np.asarray(parts[piece.first], object).reshape(count, -1)
                wide = source.shape[1]
                filled[:, at : at + wide] = source
            else:
                unpack = self.lookups[piece.lookup].view.rows.unpack
                wide = len(piece.texts)
                for row, packed in enumerate(rows[piece.lookup]):
                    values = unpack(packed)
                    filled[row, at : at + wide] = [values[name] for name in piece.texts]
            at += wide
        return filled.ravel()


def _values(part: Part) -> list[object]:
    """The ids in a tensor: text, or whole numbers."""
    ids = part.ravel() if isinstance(part, np.ndarray) else np.frombuffer(part, "<i8")
    values: list[object] = ids.tolist()
    return values


def _raw(part: Part) -> bytes | memoryview:
    return part.tobytes() if isinstance(part, np.ndarray) else part
