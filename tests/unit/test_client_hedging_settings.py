"""Backups and hedging that cannot work are refused where they are set."""

from __future__ import annotations

import math

import hedgerow
import pytest
from hedgerow.hedging import Hedging


@pytest.mark.parametrize(
    "kwargs",
    [
        {"after": 0},
        {"after": -1},
        {"after": math.nan},
        {"budget": 0},
        {"budget": 0.06},
        {"budget": -0.1},
        {"budget": math.nan},
    ],
)
def test_hedging_that_cannot_work_is_refused(kwargs):
    with pytest.raises(hedgerow.InvalidRequest, match=next(iter(kwargs))):
        Hedging(**kwargs)


@pytest.mark.parametrize("kind", [hedgerow.Client, hedgerow.AsyncClient])
@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"backups": ["b:1"], "hedge": Hedging(after=1.0), "timeout": 1.0}, "is not below timeout=1.0"),
        ({"backups": ["b:1"], "timeout": 0.02}, "is not below timeout"),
        ({"hedge": Hedging()}, "nobody to hedge with"),
        ({"backups": "b:1"}, "give a sequence"),
        ({"backups": [""]}, "each once"),
        ({"backups": ["b:1", "b:1"]}, "each once"),
        ({"backups": ["a:1"]}, "each once"),
    ],
)
def test_a_client_that_cannot_hedge_is_refused(kind, kwargs, said):
    with pytest.raises(hedgerow.InvalidRequest, match=said):
        kind("a:1", **kwargs)


def test_no_hedging_goes_with_any_timeout():
    hedgerow.Client("a:1", backups=["b:1"], hedge=None, timeout=0.001).close()
    hedgerow.Client("a:1", hedge=None).close()
