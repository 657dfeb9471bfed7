"""The HTTP face: health, metrics, and MLflow's webhook."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from hedgerow_control.registry import webhook
from hedgerow_control.registry.watcher import Watcher
from hedgerow_control.rollout.loop import Rollout

logger = logging.getLogger(__name__)


def build(
    *,
    rollout: Rollout,
    watcher: Watcher,
    uri: str,
    metrics: Callable[[], bytes],
    webhook_secret: bytes | None,
) -> FastAPI:
    """The application; everything it shows is handed in."""
    app = FastAPI(title="Hedgerow control plane", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        # Ready with a snapshot to give out. The registry may be away: the last good state goes on.
        version = rollout.hub.snapshot.version
        reasons = [] if version else ["no snapshot yet: the registry has not been read"]
        body: dict[str, object] = {"ready": bool(version), "snapshot_version": version, "reasons": reasons}
        return JSONResponse(body, status_code=200 if version else 503)

    @app.get("/health/dependencies")
    async def dependencies() -> dict[str, Any]:
        state = watcher.state
        age = None if state.read_at is None else round(rollout.hub.clock() - state.read_at, 3)
        nodes = rollout.hub.nodes.values()
        return {
            "registry": {
                "uri": uri,
                "reachable": state.read_at is not None and not state.failing,
                "age_seconds": age,
                "error": state.error,
            },
            "servers": {
                "connected": sum(node.connected for node in nodes),
                "left_behind": sorted(node.name for node in nodes if node.connected and node.left_behind),
            },
        }

    @app.get("/metrics")
    async def scrape() -> Response:
        return Response(metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/webhooks/mlflow")
    async def hook(request: Request) -> Response:
        if webhook_secret is None:
            return PlainTextResponse(
                "webhooks are off: [control] webhook_secret is not set\n", status_code=404
            )
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > webhook.MAX_BODY_BYTES:
                return PlainTextResponse(
                    f"at most {webhook.MAX_BODY_BYTES} bytes are read\n", status_code=413
                )
        problem = webhook.problem(webhook_secret, request.headers, body, now=time.time())
        if problem is not None:
            logger.warning("webhook refused: %s", problem)
            return PlainTextResponse(f"{problem}\n", status_code=401)
        watcher.hint()
        return Response(status_code=202)

    return app
