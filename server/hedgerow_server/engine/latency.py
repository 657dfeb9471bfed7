"""How long a run of so many rows takes: learned from the runs themselves."""

from __future__ import annotations


class LatencyModel:
    """Moving averages of run time, one for each power of two of rows.

    Args:
        first_guess: seconds, believed until the first run is observed.
    """

    __slots__ = ("_averages", "_fast_runs", "_recent", "_recent_runs", "_young")

    #: Weight of the newest run.
    NEWEST = 0.1
    #: A run counts as so many times the average at most. A run of 5 µs whose thread is descheduled
    #: seems to take 3 ms; taken as it is, it would send the next ten to a thread, each at ten times
    #: its cost. A model that became slow goes there in ten runs all the same.
    SLOWEST = 8.0
    #: The first guess comes from a cold run, and the first runs may be cold too: of so many, one that
    #: is far below the average takes its place at once.
    FIRST_RUNS = 16
    #: A size that none of so many runs had is not believed any more.
    RECENT = 64
    #: So many runs in a row that take less than a quarter of what was expected halve what is expected of all.
    FAST_RUNS = 3

    def __init__(self, first_guess: float) -> None:
        self._averages: list[float | None] = [first_guess]
        # Runs of one row that are still among the first.
        self._young = self.FIRST_RUNS
        # The sizes of the last runs, a bit each, and their number.
        self._recent = 0
        self._recent_runs = 0
        # Runs in a row that were far below what was expected.
        self._fast_runs = 0

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

    def likely(self, rows: int) -> float:
        """Seconds that a run of `rows` rows takes if it goes on as in smaller sizes; for judging deadlines.

        Of a size that was not seen: what the two next smaller ones that were take, and as much more for
        each further row as between them. Where there is only one, a size is hoped to take as long as
        half of it: a batch often costs little more than a row, and who expects twice the time for
        twice the rows never has the time to find that out.
        """
        averages = self._averages
        size = (rows - 1).bit_length() if rows > 1 else 0
        if size < len(averages) and (known := averages[size]) is not None:
            return known
        cautious = self.expect(rows)
        seen = [i for i in range(min(size, len(averages))) if averages[i] is not None]
        if len(seen) < 2:
            return cautious / 2
        less, more = seen[-2:]
        low, high = averages[less], averages[more]
        assert low is not None
        assert high is not None
        a_row = max(0.0, high - low) / ((1 << more) - (1 << less))
        return min(cautious, high + a_row * (rows - (1 << more)))

    def known(self, rows: int) -> float:
        """Seconds that a run of `rows` rows takes at least: as long as that size, or the next smaller seen.

        For refusing requests, which takes evidence: a size that was never seen may be as fast, and
        before the first run nothing is known. 0 then.
        """
        averages = self._averages
        size = (rows - 1).bit_length() if rows > 1 else 0
        for i in range(min(size, len(averages) - 1), -1, -1):
            average = averages[i]
            if average is not None and (i or self._young < self.FIRST_RUNS):
                return average
        return 0.0

    def ran(self, rows: int, seconds: float) -> None:
        """Takes note of a run before it is learned from, to notice when what was learned is of the past.

        What was learned while a machine was slow would else keep requests out and batches from growing for
        ever: they would not be tried, and what is not tried is not learned anew. So sizes that no longer
        occur are forgotten, and some runs in a row far below what was expected speak for all sizes.
        """
        size = (rows - 1).bit_length() if rows > 1 else 0
        self._recent |= 1 << size
        self._recent_runs += 1
        if self._recent_runs >= self.RECENT:
            self._forget()
            self._recent = self._recent_runs = 0
        if seconds >= self.expect(rows) / 4:
            self._fast_runs = 0
            return
        self._fast_runs += 1
        if self._fast_runs >= self.FAST_RUNS:
            self._fast_runs = 0
            self._averages = [None if average is None else average / 2 for average in self._averages]

    def _forget(self) -> None:
        averages = self._averages
        # From the largest down: a run takes no longer than one of more rows.
        ceiling: float | None = None
        for i in range(len(averages) - 1, -1, -1):
            average = averages[i]
            if average is None:
                continue
            if self._recent >> i & 1:
                ceiling = average
            elif ceiling is None:
                averages[i] = None
            else:
                averages[i] = min(average, ceiling)
