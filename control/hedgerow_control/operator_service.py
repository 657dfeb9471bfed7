"""What operators ask for: status, rollback, refresh."""

from __future__ import annotations

import logging
from typing import Any

import grpc
from hedgerow_protos import hedgerow_control_pb2 as pb

from hedgerow_control.registry.client import RegistryError
from hedgerow_control.registry.watcher import Watcher
from hedgerow_control.rollout.loop import Rollout
from hedgerow_control.rollout.rollback import CannotRollBack, NoSuchModel, roll_back
from hedgerow_control.status import gather

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class OperatorService:
    """`hedgerow.control.v1.Operator`."""

    def __init__(self, rollout: Rollout, watcher: Watcher, *, uri: str) -> None:
        self._rollout = rollout
        self._watcher = watcher
        self._uri = uri

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:  # noqa: N802 - gRPC's name
        """Everything at a glance."""
        del request, context
        return gather(self._rollout, self._watcher, uri=self._uri)

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.RollbackResponse:  # noqa: N802
        """Returns when the last connected server answers no more from the version, or late ones are named."""
        try:
            done = await roll_back(self._rollout, request.model, request.version)
        except NoSuchModel as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except CannotRollBack as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except OSError:
            logger.exception("rollback: the state cannot be saved")
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "the control plane cannot save its state; see its log"
            )
        logger.info(
            "%s rolled back from version %s to %s in %.0f ms%s",
            *(request.model, done.from_version, done.to_version, done.seconds * 1e3),
            f", without {', '.join(done.late)}" if done.late else "",
        )
        detail = f"no word in time from: {', '.join(done.late[:20])}" if done.late else ""
        return pb.RollbackResponse(
            from_version=done.from_version,
            to_version=done.to_version,
            snapshot_version=done.snapshot_version,
            seconds=done.seconds,
            complete=not done.late,
            detail=detail,
        )

    async def Refresh(self, request: pb.RefreshRequest, context: Context) -> pb.RefreshResponse:  # noqa: N802
        """Reads the registry now; what changed may still have to be fetched and warmed."""
        del request
        try:
            await self._watcher.refresh()
        except RegistryError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the registry cannot be read: {error}")
        await self._rollout.step()
        return pb.RefreshResponse(snapshot_version=self._rollout.hub.snapshot.version)
