"""A circuit breaker in made-up time, for each test of it."""

from __future__ import annotations

import pytest
from breaker_calls import POLICY, Time
from hedgerow_protos.breaker import Breaker


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def breaker(time) -> Breaker:
    return Breaker("store", POLICY, time)
