"""The life of one model version on one server.

    LOADING ──warmed──▶ READY ◀──────────────┐ drained, still kept
       │                 │ │                 │
       │ failed   routed │ └─omitted─▶ DRAINING ──drained, omitted──▶ DROPPED
       ▼                 ▼                ▲  │
     FAILED           SERVING ──unrouted──┘  │ routed again
                         ▲───────────────────┘

A version that was never published (its snapshot was refused or overtaken)
goes from LOADING or READY straight to DROPPED: nobody can hold it.
"""

from __future__ import annotations

from enum import Enum

from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_DRAINING,
    VERSION_STATE_DROPPED,
    VERSION_STATE_FAILED,
    VERSION_STATE_LOADING,
    VERSION_STATE_READY,
    VERSION_STATE_SERVING,
    VersionState,
)


class Place(Enum):
    """What the snapshot in force says about a version."""

    #: At least one route with a weight leads to it.
    ROUTED = "routed"
    #: Held warm; answers only those who ask for it by number.
    KEPT = "kept"
    #: Not in the snapshot: to be retired.
    OMITTED = "omitted"


class LifecycleError(RuntimeError):
    """A step that the state does not allow: a defect of the caller."""


class Lifecycle:
    """One version's state, and which steps lead where. No I/O, no clock.

    Holds: the state and the place that decides where DRAINING ends.
    """

    __slots__ = ("place", "state")

    def __init__(self) -> None:
        self.state: VersionState = VERSION_STATE_LOADING
        self.place = Place.KEPT

    def __repr__(self) -> str:
        return f"<Lifecycle {VersionState.Name(self.state)[len('VERSION_STATE_') :]} {self.place.value}>"

    def warmed(self) -> None:
        """It is in memory and has answered its warm-up sample."""
        self._step((VERSION_STATE_LOADING,), VERSION_STATE_READY)

    def failed(self) -> None:
        """It could not be loaded or warmed."""
        self._step((VERSION_STATE_LOADING,), VERSION_STATE_FAILED)

    def abandoned(self) -> None:
        """Nobody wants it any more, and it was never published."""
        self._step((VERSION_STATE_LOADING, VERSION_STATE_READY), VERSION_STATE_DROPPED)

    def placed(self, place: Place) -> None:
        """A snapshot came into force. Traffic goes only to what is warm."""
        if self.state not in (VERSION_STATE_READY, VERSION_STATE_SERVING, VERSION_STATE_DRAINING):
            raise LifecycleError(f"{self!r} cannot be {place.value}: it is not warm")
        if place is Place.ROUTED:
            self.state = VERSION_STATE_SERVING
        elif self.state == VERSION_STATE_SERVING or place is Place.OMITTED:
            self.state = VERSION_STATE_DRAINING
        self.place = place

    def drained(self) -> None:
        """The last request that chose it by a route it has lost is answered.

        If the snapshot omits it: the last request of any kind.
        """
        omitted = self.place is Place.OMITTED
        self._step((VERSION_STATE_DRAINING,), VERSION_STATE_DROPPED if omitted else VERSION_STATE_READY)

    def _step(self, origins: tuple[VersionState, ...], to: VersionState) -> None:
        if self.state not in origins:
            raise LifecycleError(f"no way from {self!r} to {VersionState.Name(to)}")
        self.state = to
