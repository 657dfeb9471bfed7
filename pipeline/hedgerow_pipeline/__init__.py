"""From data to model: real flights to an arrival-delay model in ONNX."""

from __future__ import annotations

import os

# Before ONNX Runtime is imported, as in hedgerow_server: its telemetry stays off.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
