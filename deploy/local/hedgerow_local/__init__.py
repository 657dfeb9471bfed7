"""The local stack behind `hedgerow up`, and the demo."""

from __future__ import annotations

import os

# Before ONNX Runtime is imported, as in hedgerow_server: its telemetry stays off.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
