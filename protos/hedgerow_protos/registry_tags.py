"""Tags in the registry that carry numbers: what is published, watched and served by one rule."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Tag of a version: cost units of 1,000 predictions.
COST_TAG = "cost_per_1k"
#: Tags of a model begin so and end with a role: percent of the callers.
WEIGHT_PREFIX = "hedgerow.weight."

#: Far above any price, far below where sums of it would lose digits or reach infinity.
MAX_COST = 1e9

# Not what float() takes: no NaN, no infinity, no underscores, no digits of other scripts.
_NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")


class TagError(ValueError):
    """A tag's text is not what it must be; the message quotes it and says what was expected."""


def parse_cost(text: str) -> float:
    """Reads a `cost_per_1k`.

    Raises:
        TagError: It is not a number from 0 to `MAX_COST`.
    """
    if len(text) > 40 or not _NUMBER.fullmatch(text) or (cost := float(text)) > MAX_COST:
        raise TagError(f"{text[:40]!r}; expected a number of cost units from 0 to {MAX_COST:g}, such as 0.25")
    return cost


def cost_of(tags: Mapping[str, str]) -> float | None:
    """Cost units of 1,000 predictions by a version's tags; None where they do not say."""
    # Not tags[...]: a map of a message would grow the key.
    text = tags.get(COST_TAG)
    try:
        return None if text is None else parse_cost(text)
    except TagError:
        return None


def parse_weight(text: str) -> int:
    """Reads a `hedgerow.weight.<role>`.

    Raises:
        TagError: It is not a whole number from 0 to 100.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and int(text) <= 100):
        raise TagError(f"{text[:40]!r}; expected a whole percentage, 0 to 100")
    return int(text)
