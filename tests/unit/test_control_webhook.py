"""Which of the registry's webhooks the control plane believes."""

from __future__ import annotations

import pytest
from hedgerow_control.registry import webhook

SECRET = b"s3cret"
BODY = b'{"entity": "registered_model_alias"}'


def headers(timestamp="1000", body=BODY, secret=SECRET, delivery="d1"):
    return {
        "x-mlflow-signature": webhook.signature(secret, delivery, timestamp, body),
        "x-mlflow-delivery-id": delivery,
        "x-mlflow-timestamp": timestamp,
    }


def test_the_signature_is_what_mlflow_itself_computes():
    from mlflow.webhooks.delivery import _generate_hmac_signature

    theirs = _generate_hmac_signature(SECRET.decode(), "d1", "1000", BODY.decode())
    assert webhook.signature(SECRET, "d1", "1000", BODY) == theirs


def test_a_signed_and_recent_webhook_is_believed():
    assert webhook.problem(SECRET, headers(), BODY, now=1000.0 + 299) is None


@pytest.mark.parametrize(
    ("given", "body", "now"),
    [
        (headers(secret=b"other"), BODY, 1000.0),
        (headers(), BODY + b" ", 1000.0),
        (headers() | {"x-mlflow-delivery-id": "d2"}, BODY, 1000.0),
        (headers() | {"x-mlflow-timestamp": "1001"}, BODY, 1000.0),
        (headers() | {"x-mlflow-signature": "v1,é"}, BODY, 1000.0),
        ({}, BODY, 1000.0),
        (headers(), BODY, 1301.0),
        (headers(), BODY, 699.0),
        (headers(timestamp="nan"), BODY, 1000.0),
        (headers(timestamp="soon"), BODY, 1000.0),
    ],
)
def test_a_webhook_that_is_forged_changed_or_old_is_not(given, body, now):
    assert webhook.problem(SECRET, given, body, now=now)
