"""Clients with a backup region while the primary is killed, cut off, frozen and slowed under load.

Longer, and with figures, by hand: client_outages.py.
"""

from __future__ import annotations

import pytest
from client_outages import OUTAGES, suffer
from regions import two_regions


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    with two_regions(tmp_path_factory.mktemp("regions")) as both:
        yield both


@pytest.mark.parametrize(
    ("outage", "client"), [*((outage, "asyncio") for outage in OUTAGES), ("black-holed", "blocking")]
)
def test_every_request_is_answered_in_time_and_the_budget_holds(regions, outage, client):
    # Time enough for a machine with other work; by hand, a second does.
    figures = suffer(*regions, outage, seconds=12, rate=100, client=client, timeout=4.0)
    assert not figures.failed, figures
    # A few more: what was under way when the counts were read.
    assert figures.extra_calm <= 0.02 * figures.calm + 10 + 5, figures
    assert figures.outcomes["failover"] > 0.8 * figures.during, figures
    assert figures.outcomes["primary"] > 0.7 * figures.calm, figures
