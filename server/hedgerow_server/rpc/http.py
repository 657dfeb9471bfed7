"""The HTTP face for probes: is it alive, may it get traffic, what does it lean on."""

from __future__ import annotations

from typing import Protocol

from fastapi import FastAPI
from fastapi.responses import JSONResponse


class HealthView(Protocol):
    """What the server knows about its health; answers at once, from memory."""

    def live(self) -> bool:
        """Whether the process works; if not, restart it."""

    def ready(self) -> tuple[bool, list[str]]:
        """Whether to send it traffic, and if not, why."""

    def dependencies(self) -> dict[str, object]:
        """State of each dependency by name. None of them being down makes the server unready."""


def health_app(view: HealthView) -> FastAPI:
    """/health/live and /health/ready answer 200 or 503, /health/dependencies always 200."""
    app = FastAPI(title="Hedgerow", openapi_url=None)

    # Coroutines, though nothing is awaited: FastAPI would run plain functions in threads.
    @app.get("/health/live")
    async def live() -> JSONResponse:
        is_live = view.live()
        return JSONResponse({"live": is_live}, status_code=200 if is_live else 503)

    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        is_ready, reasons = view.ready()
        return JSONResponse({"ready": is_ready, "reasons": reasons}, status_code=200 if is_ready else 503)

    @app.get("/health/dependencies")
    async def dependencies() -> JSONResponse:
        return JSONResponse(view.dependencies())

    return app
