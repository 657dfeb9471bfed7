"""Which state every version is in on this server, for whoever asks the control plane."""

from __future__ import annotations

from collections.abc import Callable

from hedgerow_protos.hedgerow_control_pb2 import (
    MODEL_GEAR_MAPPED,
    MODEL_GEAR_PACKED,
    MODEL_GEAR_UNSPECIFIED,
    VERSION_STATE_DROPPED,
    VERSION_STATE_FAILED,
    VersionReport,
    VersionState,
)

from hedgerow_server.engine.gears import Gear

_GEARS = {None: MODEL_GEAR_UNSPECIFIED, Gear.MAPPED: MODEL_GEAR_MAPPED, Gear.PACKED: MODEL_GEAR_PACKED}

#: So many failed versions are remembered; those in memory are as many as the snapshot lists.
MAX_FAILED = 64


class Reports:
    """The latest report of every version, and word of each new one.

    Holds: one report a version that is in memory, on its way there, or failed lately.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], VersionReport] = {}
        self._listener: Callable[[VersionReport], None] | None = None

    def listen(self, listener: Callable[[VersionReport], None] | None) -> None:
        """Calls `listener` with every report from now on; None: nobody."""
        self._listener = listener

    def record(
        self, model: str, version: str, state: VersionState, reason: str, gear: Gear | None = None
    ) -> None:
        """Notes a version's new state or gear."""
        report = VersionReport(
            model=model, model_version=version, state=state, reason=reason, gear=_GEARS[gear]
        )
        # Moved to the end: of the failed ones, the oldest go first.
        self._latest.pop((model, version), None)
        if state != VERSION_STATE_DROPPED:
            self._latest[model, version] = report
            failed = [key for key, kept in self._latest.items() if kept.state == VERSION_STATE_FAILED]
            for key in failed[:-MAX_FAILED]:
                del self._latest[key]
        if self._listener is not None:
            self._listener(report)

    def current(self) -> list[VersionReport]:
        """The latest report of each version."""
        return list(self._latest.values())
