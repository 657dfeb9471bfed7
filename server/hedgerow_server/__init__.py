"""The data plane: serves ONNX models over gRPC."""

from __future__ import annotations

import os

# ONNX Runtime's wheels collect telemetry for Microsoft: a database below ~/.cache and a session
# file in the temporary directory, opened when it is imported and sent from there. A server says
# nothing to strangers. `disable_telemetry_events()` comes too late; only this is early enough.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
