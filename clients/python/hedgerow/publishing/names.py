"""Which names a model may bear in the registry."""

from __future__ import annotations

import re

from hedgerow_protos.names import model_name_problem

from hedgerow.errors import ModelRefused

# MLflow's own rule for aliases, without its reserved ones.
_ALIAS = re.compile(r"(?!(?:latest|v[0-9]+)$)[A-Za-z0-9_-]{1,255}", re.IGNORECASE)


def check_model_name(name: str) -> None:
    """Raises ModelRefused for a name that no server would serve."""
    problem = model_name_problem(name)
    if problem:
        raise ModelRefused(problem)


def check_alias(alias: str) -> None:
    """Raises ModelRefused for an alias that MLflow would refuse after the upload."""
    if not _ALIAS.fullmatch(alias):
        raise ModelRefused(
            f"{alias[:60]!r} cannot be an alias: use letters, digits, '_' and '-'; 'latest' and 'v1' are"
            " MLflow's own. Hedgerow reads champion, challenger, economy and shadow"
        )
