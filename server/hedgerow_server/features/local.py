"""What this process remembers of the values it has read: bounded in bytes, the least used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from hedgerow_server.features.freshness import Known

#: Bytes that an entry takes beside its row, measured: key, objects, place in the table.
OVERHEAD = 400


class LocalValues:
    """Values by cache key, with a bound on their bytes.

    Holds rows for two ends: for a fraction of a second they spare the cache a question, and while
    the cache is down they are what can still be served, as long as their view allows.

    Args:
        max_bytes: Rows and `OVERHEAD` of each may take so much.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[bytes, Known] = OrderedDict()
        #: Bytes that are taken.
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: bytes) -> Known | None:
        """What is remembered of a key, of whatever age."""
        known = self._values.get(key)
        if known is not None:
            self._values.move_to_end(key)
        return known

    def put(self, learnt: Mapping[bytes, Known]) -> None:
        """Remembers values in place of those before."""
        values = self._values
        more = 0
        for key, known in learnt.items():
            before = values.get(key)
            values[key] = known
            more += len(known.row or b"")
            if before is None:
                more += OVERHEAD
            else:
                values.move_to_end(key)
                more -= len(before.row or b"")
        self.bytes += more
        while self.bytes > self._max_bytes:
            _, oldest = self._values.popitem(last=False)
            self.bytes -= OVERHEAD + len(oldest.row or b"")
