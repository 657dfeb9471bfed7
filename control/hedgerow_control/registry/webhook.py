"""Whether a webhook really comes from MLflow, and is recent.

A valid one is only a hint to poll now: nothing in its body is believed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping

MAX_BODY_BYTES = 64 * 1024
#: How far the sender's clock and ours may be apart.
MAX_AGE_SECONDS = 300.0


def signature(secret: bytes, delivery_id: str, timestamp: str, body: bytes) -> str:
    """The value of X-MLflow-Signature for a delivery."""
    mac = hmac.new(secret, f"{delivery_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(mac.digest()).decode()}"


def problem(secret: bytes, headers: Mapping[str, str], body: bytes, *, now: float) -> str | None:
    """Says why a delivery is not to be believed, or None.

    Args:
        secret: shared with MLflow.
        headers: looked up in lower case, as Starlette keeps them.
        body: as it came.
        now: seconds since the epoch.
    """
    given = headers.get("x-mlflow-signature", "")
    delivery_id = headers.get("x-mlflow-delivery-id", "")
    timestamp = headers.get("x-mlflow-timestamp", "")
    if not (given and delivery_id and timestamp):
        return "X-MLflow-Signature, X-MLflow-Delivery-Id and X-MLflow-Timestamp are all needed"
    expected = signature(secret, delivery_id, timestamp, body)
    if not hmac.compare_digest(expected.encode(), given.encode(errors="surrogateescape")):
        return "the signature does not match"
    # After the signature, so that only the holder of the secret learns of our clock.
    try:
        age = abs(now - float(timestamp))
    except ValueError:
        return "the timestamp is not a number of seconds"
    if not age <= MAX_AGE_SECONDS:  # also when it is NaN
        return f"the timestamp is more than {MAX_AGE_SECONDS:.0f} s away from this clock"
    return None
