"""What a server tells about itself and its models, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from hedgerow_protos import open_inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Name, release and protocol extensions of a server."""

    name: str
    version: str
    extensions: tuple[str, ...]

    @classmethod
    def read(cls, response: pb.ServerMetadataResponse) -> Self:
        """From the protocol's message."""
        return cls(response.name, response.version, tuple(response.extensions))


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """An input or output: `datatype` in the protocol's names, -1 for a dynamic dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @classmethod
    def read(cls, tensor: pb.ModelMetadataResponse.TensorMetadata) -> Self:
        """From the protocol's message."""
        return cls(tensor.name, tensor.datatype, tuple(tensor.shape))


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model takes and gives. A batch dimension is part of the shapes."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]

    @classmethod
    def read(cls, response: pb.ModelMetadataResponse) -> Self:
        """From the protocol's message."""
        return cls(
            response.name,
            tuple(response.versions),
            response.platform,
            tuple(map(TensorMetadata.read, response.inputs)),
            tuple(map(TensorMetadata.read, response.outputs)),
        )

    def input_datatypes(self) -> dict[str, str]:
        """Datatype by input name."""
        return {tensor.name: tensor.datatype for tensor in self.inputs}


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A version that the server knows: `state` is READY, LOADING, UNLOADING or UNAVAILABLE."""

    name: str
    version: str
    state: str
    reason: str

    @classmethod
    def read(cls, response: pb.RepositoryIndexResponse) -> tuple[Self, ...]:
        """From the protocol's message."""
        return tuple(cls(one.name, one.version, one.state, one.reason) for one in response.models)


@dataclass(frozen=True, slots=True)
class VersionStatistics:
    """What a version has done since the server started; durations are sums in nanoseconds."""

    name: str
    version: str
    #: Rows answered and runs of the model; their ratio is the mean batch.
    inference_count: int
    execution_count: int
    success_count: int
    success_ns: int
    fail_count: int
    fail_ns: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    #: Runs by number of rows.
    batches: dict[int, int]
    #: Milliseconds since the epoch, 0 for never.
    last_inference_ms: int

    @classmethod
    def read(cls, response: pb.ModelStatisticsResponse) -> tuple[Self, ...]:
        """From the protocol's message."""
        return tuple(
            cls(
                name=one.name,
                version=one.version,
                inference_count=one.inference_count,
                execution_count=one.execution_count,
                success_count=one.inference_stats.success.count,
                success_ns=one.inference_stats.success.ns,
                fail_count=one.inference_stats.fail.count,
                fail_ns=one.inference_stats.fail.ns,
                queue_ns=one.inference_stats.queue.ns,
                compute_input_ns=one.inference_stats.compute_input.ns,
                compute_infer_ns=one.inference_stats.compute_infer.ns,
                compute_output_ns=one.inference_stats.compute_output.ns,
                batches={batch.batch_size: batch.compute_infer.count for batch in one.batch_stats},
                last_inference_ms=one.last_inference,
            )
            for one in response.model_stats
        )
