"""The connection to the control plane, and model files over it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc
from hedgerow_protos.hedgerow_control_pb2 import FetchFileRequest
from hedgerow_protos.hedgerow_control_pb2_grpc import ArtifactsStub

from hedgerow_server.engine.files import ArtifactError

#: The largest snapshot, and the largest chunk of a file.
MAX_MESSAGE_BYTES = 64 * 2**20

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A peer that vanished without a word (power, network) is noticed within
    # 15 s. The server's grpc.http2.min_recv_ping_interval_without_data_ms
    # must allow pings this often, or it ends the connection (too_many_pings);
    # the statistics every 2 s count as data of ours, so pings go on for ever.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The subscription waits between its tries (Backoff). The channel's own
    # waits grow to 2 minutes by default, during which every try fails at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A control plane that moved is found under its name within seconds, not 30.
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    # Workers and regions on one machine must not share a connection's fate.
    ("grpc.use_local_subchannel_pool", 1),
)


def connect(address: str) -> grpc.aio.Channel:
    """Returns a channel to the control plane; it connects when it is first used.

    Args:
        address: host:port of its gRPC face.
    """
    return grpc.aio.insecure_channel(address, options=OPTIONS)


class RemoteFiles:
    """Model files from the control plane.

    Args:
        channel: as `connect` returns it.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._artifacts = ArtifactsStub(channel)  # type: ignore[no-untyped-call]  # generated code

    async def fetch(self, digest: str, path: str) -> AsyncGenerator[bytes, None]:
        """Yields one file's bytes in order.

        Args:
            digest: of the version it belongs to.
            path: of the file within the version.

        Raises:
            ArtifactError: the control plane is away or does not have it.
        """
        call = self._artifacts.FetchFile(FetchFileRequest(digest=digest, path=path))
        try:
            async for response in call:
                yield response.chunk
        except grpc.aio.AioRpcError as error:
            raise ArtifactError(
                f"cannot fetch {path!r} from the control plane: {error.code().name}: {error.details()}"
            ) from error
        finally:
            # Also when the reader stops in the middle.
            call.cancel()
