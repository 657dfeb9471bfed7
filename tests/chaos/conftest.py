"""A fault proxy between a server and callers, for each test of it."""

from __future__ import annotations

import pytest
from fault_bench import running


@pytest.fixture
async def bench():
    async with running() as one:
        yield one
