"""What speaks against a version: its failed runs, and those that callers waited for in vain.

The breaker of a model decides when that is enough (`hedgerow_protos.breaker`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hedgerow_server.call import Call
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.work import Work
from hedgerow_server.errors import Unavailable

#: A run given up at a deadline after so many times what it should have taken speaks against the version.
TIMED_OUT = 10.0


class Blame:
    """Tells models' breakers what has gone wrong.

    Args:
        batch_of: the run under way that a call is in; empty without one.
        nanoseconds: the clock of the measurements.
    """

    def __init__(self, batch_of: Callable[[Call], Sequence[Work]], nanoseconds: Callable[[], int]) -> None:
        self._batch_of = batch_of
        self._nanoseconds = nanoseconds

    def failure(self, model: Model, call: Call, reason: str) -> None:
        """Counts a failure of a version, which after several goes into quarantine."""
        if call.probe is not None:
            call.probe.failure(reason)
        else:
            model.breaker.tally(1, failed=1, reason=reason)

    def slow(self, model: Model, call: Call, batch: Sequence[Work]) -> None:
        """Counts a run that a call waited for in vain, unless nobody could have met its deadline."""
        seconds = (self._nanoseconds() - call.started_ns) * 1e-9
        if call.started_ns and seconds > TIMED_OUT * model.latency.expect(sum([work.rows for work in batch])):
            self.failure(model, call, f"a run had not ended after {seconds:.3f} s")

    def run_of(self, call: Call) -> None:
        """Counts the run under way, if there is one, of a call that ends shortly before its deadline.

        It ends then because rules answer it, or its caller, whose clock began earlier, gives it up.
        """
        batch = self._batch_of(call)
        if batch:
            assert call.choice is not None
            self.slow(call.choice.model, call, batch)


def quarantined(model: Model) -> Unavailable:
    """What a call of a version in quarantine ends with if nobody answers in its place."""
    return Unavailable(
        f"version {model.version} of model {model.name!r} is in quarantine: "
        f"{model.breaker.reason}; it is tried again in a moment"
    )
