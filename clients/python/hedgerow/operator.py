"""Asks the control plane: what is served where, and back to the version before."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, cast

import grpc
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos.hedgerow_control_pb2_grpc import OperatorStub

from hedgerow.connection import without_proxy
from hedgerow.errors import from_rpc


class Operator:
    """One control plane.

    Args:
        target: `host:port` of its gRPC face.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._channel = grpc.insecure_channel(target, without_proxy(target))
        self._stub: Any = OperatorStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def status(self, *, timeout: float = 5.0) -> pb.GetStatusResponse:
        """The registry, the nodes, and every model's versions and routes.

        Raises:
            HedgerowError: The control plane cannot be reached or refused.
        """
        return cast("pb.GetStatusResponse", self._call("GetStatus", pb.GetStatusRequest(), timeout))

    def rollback(self, model: str, version: str = "", *, timeout: float = 30.0) -> pb.RollbackResponse:
        """Moves the champion of `model` to `version`, or to the version before, and waits for the servers.

        Raises:
            HedgerowError: The control plane cannot be reached or refused.
        """
        request = pb.RollbackRequest(model=model, version=version)
        return cast("pb.RollbackResponse", self._call("Rollback", request, timeout))

    def _call(self, method: str, request: object, timeout: float) -> object:
        try:
            answer: object = getattr(self._stub, method)(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error, f"control plane {self.target}") from error
        return answer
