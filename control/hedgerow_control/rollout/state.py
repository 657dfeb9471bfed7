"""What must survive a kill -9: one small JSON file, replaced in one step."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from google.protobuf.message import DecodeError
from hedgerow_protos import hedgerow_control_pb2 as pb

from hedgerow_control.registry.desired import DesiredState
from hedgerow_control.rollout.policy import Override

logger = logging.getLogger(__name__)

_PROVEN = 10_000


@dataclass(slots=True)
class ModelState:
    """What is remembered of one model."""

    history: tuple[str, ...] = ()
    override: Override | None = None


@dataclass(frozen=True, slots=True)
class PreparedRecord:
    """A verified version: its source in the registry, and a serialized ModelVersion."""

    model: str
    source: str
    message: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that a server could not load, for as long as its digest is the same."""

    model: str
    version: str
    digest: str
    reason: str


@dataclass(slots=True)
class State:
    """Mutable, owned by the rollout loop; saved before every snapshot goes out."""

    snapshot_version: int = 0
    #: A serialized Snapshot, the last one published.
    snapshot: bytes = b""
    desired: DesiredState | None = None
    models: dict[str, ModelState] = field(default_factory=dict)
    prepared: list[PreparedRecord] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    #: "model/version/digest" of what some server has acknowledged at least once.
    proven: list[str] = field(default_factory=list)

    def encode(self) -> bytes:
        """The file's content."""
        del self.proven[:-_PROVEN]
        return msgspec.json.encode(self)


class StateFile:
    """`state.json`. Methods block: call them in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> State:
        """The last saved state; an unreadable file is set aside and the start is empty.

        Snapshot versions go on growing even then: a server tells at its hello
        which one it has.
        """
        try:
            state = msgspec.json.decode(self.path.read_bytes(), type=State)
            # What is in it as bytes must be readable too, or the start would fail for ever.
            pb.Snapshot.FromString(state.snapshot)
            for record in state.prepared:
                pb.ModelVersion.FromString(record.message)
        except FileNotFoundError:
            return State()
        except (OSError, msgspec.DecodeError, DecodeError) as error:
            aside = self.path.with_suffix(".unreadable")
            logger.error(  # noqa: TRY400 - a traceback says no more
                "cannot read %s (%s); it is kept as %s and the state starts empty", self.path, error, aside
            )
            self.path.rename(aside)
            return State()
        return state

    def save(self, encoded: bytes) -> None:
        """Replaces the file; either the old or the new one is there at any time."""
        descriptor, name = tempfile.mkstemp(prefix=".state-", dir=self.path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(encoded)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
