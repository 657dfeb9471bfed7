"""A client with backups: which of them is asked, when, and whose answer counts.

Decisions are plain objects without I/O (`attempts`, and what it knows: `regions`, `target`, `latencies`);
`blocking` and `aio` make the calls. The rules that server and client share are in `hedgerow_protos.hedging`.
"""

from __future__ import annotations

from hedgerow.hedging.settings import DEFAULT, Hedging

__all__ = ["DEFAULT", "Hedging"]
