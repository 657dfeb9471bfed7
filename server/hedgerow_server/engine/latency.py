"""How long a run of so many rows takes: learned from the runs themselves."""

from __future__ import annotations


class LatencyModel:
    """Moving averages of run time, one for each power of two of rows.

    Args:
        first_guess: seconds, believed until the first run is observed.
    """

    __slots__ = ("_averages", "_young")

    #: Weight of the newest run.
    NEWEST = 0.1
    #: A run counts as so many times the average at most. A run of 5 µs whose thread is descheduled
    #: seems to take 3 ms; taken as it is, it would send the next ten to a thread, each at ten times
    #: its cost. A model that became slow goes there in ten runs all the same.
    SLOWEST = 8.0
    #: The first guess comes from a cold run, and the first runs may be cold too: of so many, one that
    #: is far below the average takes its place at once.
    FIRST_RUNS = 16

    def __init__(self, first_guess: float) -> None:
        self._averages: list[float | None] = [first_guess]
        # Runs of one row that are still among the first.
        self._young = self.FIRST_RUNS

    def __repr__(self) -> str:
        known = {2**i: f"{s * 1e6:.0f}µs" for i, s in enumerate(self._averages) if s is not None}
        return f"<LatencyModel {known}>"

    def expect(self, rows: int) -> float:
        """Seconds that a run of `rows` rows probably takes.

        From the average of that size; where there is none, as much a row as in
        the next smaller size that was seen. That is too much for a model that
        gains from batches, so its first run of a size goes to a thread; too
        little would stop the event loop.
        """
        averages = self._averages
        size = (rows - 1).bit_length() if rows > 1 else 0
        if size < len(averages) and (known := averages[size]) is not None:
            return known
        for i in range(min(size, len(averages)) - 1, -1, -1):
            average = averages[i]
            if average is not None:
                return average * 2.0 ** (size - i)
        return 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Learns from a run."""
        averages = self._averages
        i = (rows - 1).bit_length() if rows > 1 else 0
        while len(averages) <= i:
            averages.append(None)
        average = averages[i]
        if i == 0 and self._young:
            self._young -= 1
            if average is not None and seconds < average / 4:
                average = None
        if average is None:
            averages[i] = seconds
        else:
            averages[i] = average + self.NEWEST * (min(seconds, self.SLOWEST * average) - average)
