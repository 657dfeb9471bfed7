"""RepositoryModelLoad and RepositoryModelUnload, for operators of a server without a control plane."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
from hedgerow_protos import open_inference_pb2 as oip

from hedgerow_server.errors import (
    FailedPrecondition,
    PermissionDenied,
    Unauthenticated,
    Unimplemented,
)

Context = grpc.aio.ServicerContext[Any, Any]


class Repository(Protocol):
    """The models of a server that were named on its command line."""

    async def load(self, name: str) -> None:
        """Loads a model, or its file's present content."""

    async def unload(self, name: str) -> None:
        """Retires a model."""


class OperateHandlers:
    """The methods that change what is served.

    Args:
        repository: the server's own models; None under a control plane, which
            then decides alone.
        token: what an operator must show; None: nobody may.
        workers: of the server. A call reaches one of them, and they must not differ.
    """

    def __init__(self, repository: Repository | None, token: str | None, *, workers: int = 1) -> None:
        self._repository = repository
        self._token = token
        self._workers = workers

    async def load(
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        """RepositoryModelLoad: loads a model, or reads its file again."""

        async def load(repository: Repository) -> None:
            if request.parameters:
                raise Unimplemented(
                    f"parameters {', '.join(sorted(request.parameters))} are not supported; "
                    "a model is loaded from the file that the server was started with"
                )
            await repository.load(request.model_name)

        await self._do(context, load)
        return oip.RepositoryModelLoadResponse()

    async def unload(
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        """RepositoryModelUnload: retires a model; requests under way are answered."""
        await self._do(context, lambda repository: repository.unload(request.model_name))
        return oip.RepositoryModelUnloadResponse()

    async def _do(self, context: Context, verb: Callable[[Repository], Awaitable[None]]) -> None:
        self._authorize(context)
        if self._repository is None:
            raise FailedPrecondition(
                "the control plane decides what this server serves; "
                "move the model's alias in MLflow, or use `hedgerow rollback`"
            )
        if self._workers > 1:
            raise FailedPrecondition(
                f"this server has {self._workers} workers and a call reaches only one of them; "
                "restart the server, run it with --workers 1, or under a control plane"
            )
        await verb(self._repository)

    def _authorize(self, context: Context) -> None:
        if not self._token:
            raise PermissionDenied(
                "loading and unloading is for operators, and this server has no operator token; "
                "set HEDGEROW_SERVER__OPERATOR_TOKEN or server.operator_token_file"
            )
        metadata = dict(context.invocation_metadata() or ())
        shown = metadata.get("authorization")
        if not shown:
            raise Unauthenticated(
                "loading and unloading is for operators; send `authorization: Bearer TOKEN`"
            )
        if not hmac.compare_digest(str(shown).encode(), f"Bearer {self._token}".encode()):
            raise PermissionDenied("this is not the operator token")
