"""What a model may be called, wherever it is published, watched or served."""

from __future__ import annotations

import re

#: A model's name is part of file names, URLs, metric labels and log lines.
MODEL_NAME = re.compile(r"(?!\.)(?!.*\.\.)[A-Za-z0-9._-]{1,255}")


def model_name_problem(name: str) -> str | None:
    """Says why a model cannot be called so, or None if it can."""
    if MODEL_NAME.fullmatch(name):
        return None
    shown = name if len(name) <= 60 else f"{name[:57]}..."
    return (
        f"{shown!r} ({len(name)} characters) cannot name a model: use 1 to 255 letters, digits, "
        "'.', '_' and '-', without '..' and not beginning with '.'"
    )
