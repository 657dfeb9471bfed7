"""Waits until servers answer from a published version."""

from __future__ import annotations

import time

from hedgerow_protos import hedgerow_control_pb2 as pb

from hedgerow.errors import DeadlineExceeded, FailedPrecondition
from hedgerow.operator import Operator

#: Far below the second between two polls of the registry.
_LOOK_AGAIN_SECONDS = 0.1


def wait(control: str, model: str, version: str, alias: str, *, timeout: float) -> int:
    """Waits until `version` takes the traffic of `alias` on every connected server.

    Returns:
        How many servers that are.

    Raises:
        FailedPrecondition: The version cannot be fetched, or is refused.
        DeadlineExceeded: It took longer than `timeout` seconds.
        HedgerowError: The control plane cannot be reached.
    """
    end = time.monotonic() + timeout
    with Operator(control) as operator:
        while True:
            answer = operator.status()
            servers = _serving(answer, model, version, alias)
            if servers:
                return servers
            if time.monotonic() > end:
                raise DeadlineExceeded(
                    f"{model} version {version} is registered, but no server answers from it after"
                    f" {timeout:g} s; `hedgerow status` shows what it waits for"
                )
            time.sleep(_LOOK_AGAIN_SECONDS)


def _serving(answer: pb.GetStatusResponse, model: str, version: str, alias: str) -> int:
    for shown in (one for one in answer.models if one.name == model):
        for known in (one for one in shown.versions if one.version == version):
            if known.stage == "failed":
                raise FailedPrecondition(f"{model} version {version} is not served: {known.reason}")
        if any(route.version == version and route.variant == alias for route in shown.routes):
            connected = [node for node in answer.nodes if node.connected]
            if all(node.snapshot_version >= answer.snapshot_version for node in connected):
                return len(connected)
    return 0
