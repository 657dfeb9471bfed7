"""Where the registry is, and whether anybody listens there; before MLflow, which takes seconds, is loaded."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

from hedgerow.errors import RegistryError

DEFAULT_URI = "http://127.0.0.1:5000"


def uri_or_default(uri: str | None) -> str:
    """The given registry, else MLFLOW_REGISTRY_URI, MLFLOW_TRACKING_URI, or the local stack's."""
    return (
        uri or os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    )


def knock(uri: str) -> None:
    """Raises RegistryError if nobody listens there; MLflow's own client would try for minutes."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()  # noqa: S310 - http(s) only
    except urllib.error.HTTPError:
        return  # somebody answers; what it allows, the calls will tell
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise RegistryError(
            f"MLflow at {uri} cannot be reached: {reason}. Start the local stack with `hedgerow up`,"
            " or name another registry (--registry, MLFLOW_TRACKING_URI)"
        ) from error
