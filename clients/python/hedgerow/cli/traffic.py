"""The part of `hedgerow status` on variants: who gets which share of the callers, and what that costs."""

from __future__ import annotations

from hedgerow_protos import hedgerow_control_pb2 as pb
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

_NONE = "-"


def view(answer: pb.GetStatusResponse) -> list[RenderableType]:
    """A table of the models that split their callers or have a price; nothing where none does."""
    models = [model for model in answer.models if _is_split(model)]
    if not models:
        return []
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for name in ("variant", "version"):
        table.add_column(name, no_wrap=True)
    for name in ("weight", "served", "predictions", "per 1k", "cost", "saved"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in models:
        for one in model.variants:
            table.add_row(Text(model.name), *_row(one))
        priced = [one for one in model.variants if _is_priced(one)]
        if len(priced) > 1:
            cost = sum(one.cost_units for one in priced)
            saved = sum(one.saved_units for one in priced)
            table.add_row("", "all", *[""] * 5, _units(cost), _saved(saved))
    return [Text(), table]


def _is_split(model: pb.ModelStatus) -> bool:
    takes = sum(one.variant != "shadow" and bool(one.version) for one in model.variants)
    return takes > 1 or any(_is_priced(one) for one in model.variants)


def _is_priced(one: pb.VariantStatus) -> bool:
    return one.HasField("cost_per_1k") or bool(one.cost_units)


def _row(one: pb.VariantStatus) -> list[RenderableType]:
    has_price, plain = _is_priced(one), one.variant in {"champion", "asked"}
    return [
        Text(one.variant),
        one.version or _NONE,
        f"{one.weight} %" if one.version else _NONE,
        f"{one.served_share:.1%}".replace("%", " %") if one.HasField("served_share") else _NONE,
        str(one.predictions),
        f"{one.cost_per_1k:g}" if one.HasField("cost_per_1k") else _NONE,
        _units(one.cost_units) if has_price else _NONE,
        _saved(one.saved_units) if has_price and not plain else _NONE,
    ]


def _units(units: float) -> str:
    return f"{units:,.4f}" if abs(units) < 1000 else f"{units:,.0f}"


def _saved(units: float) -> Text:
    """Less than nothing is red: the variant is dearer than the champion."""
    return Text(_units(units), style="green" if units > 0 else "red" if units < 0 else "")
