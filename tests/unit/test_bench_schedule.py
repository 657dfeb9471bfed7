"""When requests are due."""

import numpy as np
import pytest
from hedgerow_bench.schedule import offsets


def test_a_poisson_schedule_has_the_rate_and_the_spread_of_one():
    """Gaps of a Poisson process vary as much as they last on average."""
    times = offsets(300, 100, "poisson", np.random.default_rng(1))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(30_000, rel=0.03)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    assert times[-1] <= 100


def test_a_uniform_schedule_is_an_even_beat():
    assert offsets(4, 1, "uniform", np.random.default_rng()).tolist() == [0, 0.25, 0.5, 0.75]


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        offsets(0, 10, "poisson", np.random.default_rng())
