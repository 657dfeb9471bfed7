"""A feature view: its names, its rules, its YAML.

    name: plane_profile
    version: 1
    entity: [{name: tailnum, datatype: BYTES}]
    fields:
      - {name: seats, datatype: FP32, default: 150}
    ttl: 60s
    stale_ttl: 1h

A version never changes. What two definitions of one version differ in is told by
`differences`; what decides how a stored row is read is told by `fingerprint`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

import numpy as np

from hedgerow_protos import yaml_message
from hedgerow_protos.feature_datatypes import DTYPES, default_problem, default_values
from hedgerow_protos.hedgerow_control_pb2 import EntityKey, FeatureDefault, FeatureField, FeatureView

#: What one view may have at most. A row of the widest is 64 KiB.
MAX_KEYS = 8
MAX_FIELDS = 2048
MAX_ROW_BYTES = 64 * 1024
_LONGEST_SPAN = 10 * 366 * 86_400.0

#: In file names, cache keys and metric labels.
_VIEW_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
#: Names of tensors and of columns in files.
_PART_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_REFERENCE = re.compile(rf"({_VIEW_NAME.pattern})@([1-9][0-9]{{0,9}})")
_MAX_VERSION = 2**31 - 1

_KEY_DATATYPES = ("BYTES", "INT64")


class ViewError(ValueError):
    """A view that cannot be; the message names it, what is wrong and what is expected."""


def view_ref(view: FeatureView) -> str:
    """What a view is called: `name@version`."""
    return f"{view.name}@{view.version}"


def parse_ref(text: str) -> tuple[str, int]:
    """Name and version of `name@version`.

    Raises:
        ViewError: It is something else.
    """
    found = _REFERENCE.fullmatch(text)
    if found is None or int(found[2]) > _MAX_VERSION:
        raise ViewError(f"{text[:100]!r} is no view; expected NAME@VERSION, such as plane_profile@1")
    return found[1], int(found[2])


def parse_views(text: str, *, source: str) -> list[FeatureView]:
    """Reads a file of views: one view, or several in a list or under `views:`.

    Args:
        text: YAML, at most 1 MiB.
        source: What to call it in an error, such as the path.

    Returns:
        The views as `canonical` writes them, each name and version once.

    Raises:
        SpecError: Not YAML, an unknown key, or a value of the wrong type.
        ViewError: A view breaks a rule.
    """
    value = yaml_message.load(text, source=source)
    place = ""
    if isinstance(value, dict) and set(value) == {"views"}:
        value, place = value["views"], "views"
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise ViewError(f"{source}: no views in it")
    views: dict[str, FeatureView] = {}
    for index, item in enumerate(listed):
        view = FeatureView()
        here = f"{place}[{index}]" if isinstance(value, list) else place
        yaml_message.fill(view, item, source=source, place=here)
        try:
            check_view(view)
        except ViewError as error:
            raise ViewError(f"{source}: {error}") from None
        if view_ref(view) in views:
            raise ViewError(f"{source}: {view_ref(view)} is there twice")
        views[view_ref(view)] = canonical(view)
    return list(views.values())


def dump_views(views: list[FeatureView]) -> str:
    """Writes views as YAML that `parse_views` reads back."""
    return yaml_message.dump({"views": [yaml_message.plain(view) for view in views]})


def check_view(view: FeatureView) -> None:
    """Checks a view by itself.

    Raises:
        ViewError: It breaks a rule; the first one is told.
    """
    if not _VIEW_NAME.fullmatch(view.name):
        raise ViewError(
            f"{view.name[:100]!r} cannot name a view: use 1 to 63 of a-z, 0-9 and '_', a letter first"
        )
    ref = view_ref(view)
    if not 1 <= view.version <= _MAX_VERSION:
        raise ViewError(f"{ref}: the version is {view.version}; expected 1 to {_MAX_VERSION}")
    _check_entity(view, ref)
    _check_fields(view, ref)
    _check_spans(view, ref)


def canonical(view: FeatureView) -> FeatureView:
    """The same view, written the one shortest way, so that equal definitions are equal messages.

    Raises:
        ViewError: It breaks a rule.
    """
    check_view(view)
    return FeatureView(
        name=view.name,
        version=view.version,
        entity=[EntityKey(name=key.name, datatype=key.datatype) for key in view.entity],
        fields=[
            FeatureField(
                name=field.name,
                datatype=field.datatype,
                width=field.width if field.width > 1 else 0,
                default=_canonical_default(field),
            )
            for field in view.fields
        ],
        ttl=view.ttl,
        stale_ttl=view.stale_ttl,
        max_age=view.max_age,
    )


def fingerprint(view: FeatureView) -> int:
    """63 bits that are equal for two views whose rows and entity ids mean the same.

    They cover name, version, entity keys and the fields' names, datatypes and widths; neither
    defaults nor times, which do not change what a stored row says.
    """
    meaning = [
        view.name,
        view.version,
        [[key.name, key.datatype] for key in view.entity],
        [[field.name, field.datatype, field.width or 1] for field in view.fields],
    ]
    digest = hashlib.sha256(json.dumps(meaning, separators=(",", ":")).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def differences(old: FeatureView, new: FeatureView) -> list[str]:
    """What `new` changes in `old`, one line each; empty if they are the same definition."""
    lines = [
        f"{what}: {before} -> {after}"
        for what, before, after in (
            ("name", old.name, new.name),
            ("version", old.version, new.version),
            ("entity", _entity_text(old), _entity_text(new)),
            ("ttl", f"{old.ttl:g} s", f"{new.ttl:g} s"),
            ("stale_ttl", f"{old.stale_ttl:g} s", f"{new.stale_ttl:g} s"),
            ("max_age", f"{old.max_age:g} s", f"{new.max_age:g} s"),
        )
        if before != after
    ]
    before = {field.name: _field_text(field) for field in old.fields}
    after = {field.name: _field_text(field) for field in new.fields}
    for name in before | after:
        if name not in after:
            lines.append(f"field {name}: removed (was {before[name]})")
        elif name not in before:
            lines.append(f"field {name}: added ({after[name]})")
        elif before[name] != after[name]:
            lines.append(f"field {name}: {before[name]} -> {after[name]}")
    if list(before) != list(after) and set(before) == set(after):
        lines.append(f"order of fields: {', '.join(before)} -> {', '.join(after)}")
    return lines


def _check_entity(view: FeatureView, ref: str) -> None:
    if not 1 <= len(view.entity) <= MAX_KEYS:
        raise ViewError(f"{ref}: {len(view.entity)} entity keys; expected 1 to {MAX_KEYS}")
    seen: set[str] = set()
    for key in view.entity:
        _check_part_name(key.name, f"{ref}: entity key", seen)
        if key.datatype not in _KEY_DATATYPES:
            raise ViewError(
                f"{ref}: entity key {key.name} has the datatype {key.datatype!r}; expected BYTES or INT64"
            )


def _check_fields(view: FeatureView, ref: str) -> None:
    if not 1 <= len(view.fields) <= MAX_FIELDS:
        raise ViewError(f"{ref}: {len(view.fields)} fields; expected 1 to {MAX_FIELDS}")
    seen = {key.name for key in view.entity}
    size = 0
    for field in view.fields:
        _check_part_name(field.name, f"{ref}: field", seen)
        place = f"{ref}: field {field.name}"
        if field.datatype not in DTYPES:
            raise ViewError(
                f"{place} has the datatype {field.datatype!r}; expected one of {', '.join(DTYPES)}"
            )
        if field.datatype == "BYTES" and field.width > 1:
            raise ViewError(f"{place} has the width {field.width}; BYTES fields are one value wide")
        size += DTYPES[field.datatype].itemsize * max(field.width, 1)
        if size > MAX_ROW_BYTES:
            raise ViewError(f"{place}: a row becomes larger than {MAX_ROW_BYTES} bytes; split the view")
        problem = default_problem(field)
        if problem:
            raise ViewError(f"{place}: {problem}")


def _check_part_name(name: str, what: str, seen: set[str]) -> None:
    if not _PART_NAME.fullmatch(name):
        raise ViewError(
            f"{what} {name[:100]!r}: use 1 to 63 letters, digits and '_', not beginning with a digit"
        )
    if name in seen:
        raise ViewError(f"{what} {name} is there twice; entity keys and fields share one set of names")
    seen.add(name)


def _check_spans(view: FeatureView, ref: str) -> None:
    for name, seconds in (("ttl", view.ttl), ("stale_ttl", view.stale_ttl), ("max_age", view.max_age)):
        if not (math.isfinite(seconds) and 0 <= seconds <= _LONGEST_SPAN):
            raise ViewError(f"{ref}: {name} is {seconds:g} s; expected at most ten years")
    if not view.ttl:
        raise ViewError(f"{ref}: ttl is missing or 0; say how long a value is fresh, such as ttl: 60s")
    if view.stale_ttl < view.ttl:
        raise ViewError(
            f"{ref}: stale_ttl is {view.stale_ttl:g} s, below the ttl of {view.ttl:g} s; say how old a value"
            " may be while the store is down, such as stale_ttl: 1h (the same as ttl: never stale)"
        )


def _canonical_default(field: FeatureField) -> FeatureDefault:
    values = _shortest(default_values(field))
    if field.datatype == "BYTES":
        return FeatureDefault(strings=values)
    if np.issubdtype(DTYPES[field.datatype], np.floating):
        return FeatureDefault(numbers=values)
    return FeatureDefault(integers=values)


def _entity_text(view: FeatureView) -> str:
    return ", ".join(f"{key.name} {key.datatype}" for key in view.entity)


def _field_text(field: FeatureField) -> str:
    values = _shortest(default_values(field))
    shown = ", ".join(map(repr, values[:4])) + (", ..." if len(values) > 4 else "")
    width = f"[{field.width}]" if field.width > 1 else ""
    return f"{field.datatype}{width} default {shown}"


def _shortest(values: list[Any]) -> list[Any]:
    """One value where all are the same; by their text, as NaN does not equal itself."""
    return values[:1] if len(set(map(repr, values))) == 1 else values
