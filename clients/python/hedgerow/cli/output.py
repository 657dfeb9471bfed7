"""How results and errors look: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

import numpy as np
from google.protobuf.message import Message
from rich.console import Console

from hedgerow.errors import HedgerowError, RowsRefused


def console() -> Console:
    """Standard output; made per call, so that it sees the current one."""
    # Rich would fold everything at 80 columns in a file or a pipe, which have no width.
    unbounded = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=200 if unbounded else None)


def progress_console() -> Console:
    """Standard error, where progress goes so that it stays out of pipes."""
    return Console(stderr=True, highlight=False)


def print_json(value: object, *, indent: int | None = 2) -> None:
    """One JSON document on standard output."""
    print(json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False), flush=True)


def plain(value: Any) -> Any:
    """Messages, arrays and bytes as what JSON has; NaN and infinities as strings, like protobuf's JSON."""
    if isinstance(value, Message):
        return {field.name: _field(value, field) for field in value.DESCRIPTOR.fields}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str | int | float | None):
        return value
    return [plain(item) for item in value]


def _field(message: Message, field: Any) -> Any:
    """A number that may be absent is null then; the rest has the values that protobuf gives them."""
    absent = field.has_presence and field.message_type is None and not message.HasField(field.name)
    return None if absent else plain(getattr(message, field.name))


def print_error(
    message: str, *, as_json: bool, kind: str = "Usage", error: HedgerowError | None = None
) -> None:
    """One line on standard error."""
    line = " ".join(message.split())
    if as_json:
        body: dict[str, Any] = {"kind": kind, "message": line}
        if error is not None:
            body |= {"code": error.code.name, "request_id": error.request_id}
        if isinstance(error, RowsRefused):
            bad = [{"place": place, "reason": reason} for place, reason in error.bad]
            body |= {"bad_count": error.bad_count, "bad": bad}
        print(json.dumps({"error": body}, ensure_ascii=False), file=sys.stderr)
    else:
        print(f"hedgerow: {line}", file=sys.stderr)
