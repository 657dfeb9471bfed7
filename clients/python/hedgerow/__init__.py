"""Hedgerow's client: asks models over gRPC, and publishes them to the registry.

    import numpy as np
    import hedgerow

    with hedgerow.Client("127.0.0.1:8001") as client:
        result = client.infer("delay", {"features": np.zeros((1, 12), np.float32)})
        print(result["probability"], result.model_version)

Importing it loads gRPC, protobuf and NumPy. `publish`, which needs
`pip install 'hedgerow[publish]'`, loads MLflow and ONNX when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hedgerow.async_client import AsyncClient
from hedgerow.client import Client
from hedgerow.connection import Tls
from hedgerow.descriptions import (
    IndexEntry,
    ModelMetadata,
    ServerMetadata,
    TensorMetadata,
    VersionStatistics,
)
from hedgerow.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    HedgerowError,
    InvalidReply,
    InvalidRequest,
    ModelRefused,
    NotFound,
    Overloaded,
    PermissionDenied,
    RegistryError,
    ServerFault,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from hedgerow.hedging import Hedging
from hedgerow.infer_request import InferRequest
from hedgerow.infer_result import InferResult
from hedgerow.prediction import predict

if TYPE_CHECKING:
    from hedgerow.publishing import PublishedVersion, publish

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "FailedPrecondition",
    "HedgerowError",
    "Hedging",
    "IndexEntry",
    "InferRequest",
    "InferResult",
    "InvalidReply",
    "InvalidRequest",
    "ModelMetadata",
    "ModelRefused",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "PublishedVersion",
    "RegistryError",
    "ServerFault",
    "ServerMetadata",
    "TensorMetadata",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "VersionStatistics",
    "predict",
    "publish",
]


def __getattr__(name: str) -> Any:
    if name in ("PublishedVersion", "publish"):
        from hedgerow import publishing  # noqa: PLC0415 - see the module's docstring

        return getattr(publishing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
