"""What a server says of itself and its models: metadata, configuration, statistics, index."""

from __future__ import annotations

from importlib.metadata import version as release
from typing import Any, cast

import grpc
from hedgerow_protos import open_inference_pb2 as oip
from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_DRAINING,
    VERSION_STATE_LOADING,
    VERSION_STATE_READY,
    VERSION_STATE_SERVING,
)
from hedgerow_protos.hedging import LOAD, REGION, write_load

from hedgerow_server.answer import Answerer
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.signature import TensorSpec
from hedgerow_server.errors import NotFound, ServingError
from hedgerow_server.routing.reports import Reports
from hedgerow_server.routing.table import Choice, ModelRoutes
from hedgerow_server.rpc.health import Health

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = (
    "statistics",
    "model_configuration",
    "model_repository",
    "binary_tensor_data",
    "parameters",
    "schedule_policy",
)

#: Triton's names for the states of a version.
_INDEX_STATES = {
    VERSION_STATE_LOADING: "LOADING",
    VERSION_STATE_READY: "READY",
    VERSION_STATE_SERVING: "READY",
    VERSION_STATE_DRAINING: "UNLOADING",
}

Context = grpc.aio.ServicerContext[Any, Any]


class DescribeHandlers:
    """The read-only methods, answered from the current route table."""

    def __init__(
        self, answerer: Answerer, health: Health, reports: Reports, *, region: str = "local"
    ) -> None:
        self._answerer = answerer
        self._health = health
        self._reports = reports
        self._region = region

    async def server_live(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:
        """ServerLive: it answers, so it lives."""
        del request, context
        return oip.ServerLiveResponse(live=True)

    async def server_ready(
        self, request: oip.ServerReadyRequest, context: Context
    ) -> oip.ServerReadyResponse:
        """ServerReady: every model of the snapshot is warm, and the server is not shutting down."""
        del request
        # Other regions probe by this: whether there is room for what fails there, too.
        context.set_trailing_metadata(
            ((REGION, self._region), (LOAD, write_load(self._answerer.utilization)))
        )
        return oip.ServerReadyResponse(ready=self._health.ready()[0])

    async def model_ready(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:
        """ModelReady: false, not an error, for what is not here."""
        del context
        try:
            self._find(request.name, request.version)
        except ServingError:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=not self._answerer.draining)

    async def server_metadata(
        self, request: oip.ServerMetadataRequest, context: Context
    ) -> oip.ServerMetadataResponse:
        """ServerMetadata."""
        del request, context
        return oip.ServerMetadataResponse(name="hedgerow", version=release("hedgerow"), extensions=EXTENSIONS)

    async def model_metadata(
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        """ModelMetadata of the asked version, else of the one in service."""
        del context
        routes, choice = self._find(request.name, request.version)
        model = choice.model
        return oip.ModelMetadataResponse(
            name=model.name,
            versions=list(routes.versions),
            platform=PLATFORM,
            inputs=[_metadata(spec, _input_shape(spec)) for spec in self._answerer.codecs.inputs(choice)],
            outputs=[_metadata(spec, spec.shape) for spec in model.signature.outputs],
        )

    async def model_config(
        self, request: oip.ModelConfigRequest, context: Context
    ) -> oip.ModelConfigResponse:
        """ModelConfig, the part of Triton's that its clients read."""
        del context
        _, choice = self._find(request.name, request.version)
        model = choice.model
        signature = model.signature
        # Triton leaves the batch dimension out where there is one.
        skip = 1 if signature.max_batch_size else 0
        config = oip.ModelConfig(
            name=model.name,
            platform=PLATFORM,
            backend="onnxruntime",
            max_batch_size=signature.max_batch_size,
            input=[
                oip.ModelInput(name=spec.name, data_type=_triton(spec), dims=_input_shape(spec)[skip:])
                for spec in self._answerer.codecs.inputs(choice)
            ],
            output=[
                oip.ModelOutput(name=spec.name, data_type=_triton(spec), dims=spec.shape[skip:])
                for spec in signature.outputs
            ],
            version_policy=oip.ModelVersionPolicy(
                specific=oip.ModelVersionPolicy.Specific(versions=[int(model.version)])
            ),
            model_transaction_policy=oip.ModelTransactionPolicy(decoupled=False),
        )
        if model.batches:
            asked = model.serving.batching
            config.dynamic_batching.SetInParent()
            config.dynamic_batching.preferred_batch_size.extend(asked.preferred_batch_size)
            config.dynamic_batching.max_queue_delay_microseconds = asked.max_queue_delay_microseconds
            config.dynamic_batching.priority_levels = asked.priority_levels
            config.dynamic_batching.default_priority_level = asked.default_priority_level
        return oip.ModelConfigResponse(config=config)

    async def model_statistics(
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        """ModelStatistics of one version, of all versions of a model, or of everything."""
        del context
        reply = oip.ModelStatisticsResponse()
        for routes in self._named(request.name):
            for number, choice in routes.versions.items():
                if request.version in {"", number}:
                    reply.model_stats.append(_statistics(choice.model))
        if request.name and not reply.model_stats:
            self._find(request.name, request.version)
        return reply

    async def repository_index(
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        """RepositoryIndex: every version known here and its state."""
        del context
        reply = oip.RepositoryIndexResponse()
        for report in sorted(self._reports.current(), key=lambda at: (at.model, int(at.model_version))):
            state = _INDEX_STATES.get(report.state, "UNAVAILABLE")
            if state == "READY" or not request.ready:
                reply.models.add(
                    name=report.model, version=report.model_version, state=state, reason=report.reason
                )
        return reply

    def _named(self, name: str) -> list[ModelRoutes]:
        models = self._answerer.table.models
        if not name:
            return list(models.values())
        return [models[name]] if name in models else []

    def _find(self, name: str, number: str) -> tuple[ModelRoutes, Choice]:
        table = self._answerer.table
        routes = table.models.get(name)
        if routes is not None and not number and not routes.shares and routes.versions:
            # Nothing in service: the highest version describes the model.
            number = max(routes.versions, key=int)
        choice = table.choose(name, number, "", "describe")
        if routes is None:
            raise NotFound(name)
        if not number:
            # The champion's share comes last.
            choice = routes.shares[-1][1]
        return routes, choice


def _input_shape(spec: TensorSpec) -> tuple[int, ...]:
    """An input's shape as its callers are told: Triton has no scalars, its clients stop at an empty one."""
    return spec.shape or (1,)


def _metadata(spec: TensorSpec, shape: tuple[int, ...]) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype.name, shape=shape)


def _triton(spec: TensorSpec) -> oip.DataType:
    return cast("oip.DataType", spec.datatype.triton)


def _statistics(model: Model) -> oip.ModelStatistics:
    of = model.statistics
    succeeded = of.requests.get(0, 0)
    duration = oip.StatisticDuration
    requests, input_ns, run_ns, output_ns = of.waited
    return oip.ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=of.last_inference_ms,
        inference_count=of.rows,
        execution_count=of.runs,
        inference_stats=oip.InferStatistics(
            success=duration(count=succeeded, ns=of.success_ns),
            fail=duration(count=sum(of.requests.values()) - succeeded, ns=of.fail_ns),
            queue=duration(count=of.queued, ns=of.queue_ns),
            compute_input=duration(count=requests, ns=input_ns),
            compute_infer=duration(count=requests, ns=run_ns),
            compute_output=duration(count=requests, ns=output_ns),
        ),
        batch_stats=[
            oip.InferBatchStatistics(
                batch_size=rows,
                compute_input=duration(count=runs, ns=input_ns),
                compute_infer=duration(count=runs, ns=run_ns),
                compute_output=duration(count=runs, ns=output_ns),
            )
            for rows, (runs, input_ns, run_ns, output_ns, _) in sorted(of.batches.items())
        ],
    )
