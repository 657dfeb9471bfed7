"""Which names and tags a model may bear in the registry."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hedgerow_protos.names import model_name_problem
from hedgerow_protos.registry_tags import COST_TAG, WEIGHT_PREFIX, TagError, parse_cost, parse_weight

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


def check_tags(tags: Mapping[str, str], version_tags: Mapping[str, str]) -> None:
    """Raises ModelRefused for numbers that the control plane would not take.

    Args:
        tags: Of the model.
        version_tags: Of the version.
    """
    numbers = [(key, text, parse_weight) for key, text in tags.items() if key.startswith(WEIGHT_PREFIX)]
    costs = [(key, text, parse_cost) for key, text in version_tags.items() if key == COST_TAG]
    for key, text, parse in (*numbers, *costs):
        try:
            parse(text)
        except TagError as error:
            raise ModelRefused(f"tag {key[:80]} is {error}") from None
