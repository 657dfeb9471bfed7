"""When each request of an open loop is due, decided before the first is sent."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Arrivals = Literal["poisson", "uniform"]


def offsets(
    rate: float, seconds: float, arrivals: Arrivals, random: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Seconds after the start at which requests are due, in order.

    Args:
        rate: Requests per second, on average.
        seconds: Length of the run; no request is due later.
        arrivals: `poisson` for independent callers, who come in bunches, or
            `uniform` for an even beat.
        random: Source of the Poisson process's gaps.

    Returns:
        float64 [requests].

    Raises:
        ValueError: `rate` or `seconds` is not positive.
    """
    if not (rate > 0 and seconds > 0):
        raise ValueError(f"rate and seconds must be positive, got {rate} and {seconds}")
    if arrivals == "uniform":
        return np.arange(int(rate * seconds)) / rate
    # Given their number, the arrivals of a Poisson process are uniform points in order.
    return np.sort(random.uniform(0, seconds, random.poisson(rate * seconds)))
