"""Scenes under load: the load itself, the swap, the rollback."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
from hedgerow_bench.load import Load
from hedgerow_bench.plan import Plan
from hedgerow_pipeline.features import MODEL
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos.hedgerow_control_pb2_grpc import OperatorStub

from hedgerow_local.demo.prepare import SERVED_WITHIN, publish, questions
from hedgerow_local.demo.stage import Contribution, SceneFailed, Stage

RATE = 300.0
#: Seconds of load in each phase: before anything changes, with version 2, after the rollback.
BEFORE, SWAPPED, AFTER = 10.0, 10.0, 8.0
#: The load is stopped when the scenes are over; this is only its bound.
LONGEST = 240.0
_NEWS_EVERY = 4


class StartLoad:
    """Starts an open loop and lets it run undisturbed for a while."""

    name = "load"
    title = f"Ask {RATE:.0f} times a second, at times fixed beforehand"

    async def run(self, stage: Stage) -> Contribution:
        """Reports the load's settings."""
        plan = Plan(
            target=stage.endpoints.server,
            model=MODEL,
            inputs=str(questions(stage.models)),
            records=str(stage.root / "requests.npz"),
            rate=RATE,
            seconds=LONGEST,
        )
        stage.load = await stage.exits.enter_async_context(Load(plan, tell=_News(stage)))
        stage.marks["load_started"] = stage.load.started
        await asyncio.sleep(BEFORE)
        return {
            "load": {
                "kind": "open loop, Poisson arrivals; latency counts from when a request was due",
                "rate": plan.rate,
                "timeout_ms": plan.timeout * 1000,
                "retries": 0,
                "every_answer_checked": True,
            }
        }


class _News:
    """Prints how the load is doing every few seconds."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._heard = 0

    def __call__(self, news: Any) -> None:
        if news["event"] == "version":
            self._stage.tell(f"First reply of version {news['version']}", style="bold")
        if news["event"] != "progress":
            return
        self._heard += 1
        if self._heard % _NEWS_EVERY == 0 or news["failed"]:
            versions = ", ".join(f"v{version or '-'} {count}" for version, count in news["versions"].items())
            # Said when there is something to say: on most days all are fresh.
            ages = {age: count for age, count in news["features"].items() if age in ("stale", "default")}
            versions += "".join(f", {count} {age}" for age, count in ages.items())
            latency = news["latency_ms"]
            self._stage.tell(
                f"{news['requests']:,} requests, {news['failed']} failed; last second: {versions},"
                f" p50 {latency.get('p50', 0):.1f} ms, p99 {latency.get('p99', 0):.1f} ms"
            )


class Swap:
    """Publishes version 2 and moves `champion` to it while requests keep coming."""

    name = "swap"
    title = "Publish version 2 and move champion to it, under load"

    async def run(self, stage: Stage) -> Contribution:
        """Notes the marks from which `Account` computes the swap's numbers."""
        assert stage.load is not None
        stage.mark("publish_started")
        version = await publish(stage, 2, alias=None)
        stage.tell(f"Registered as version {version}, serving nobody yet")
        await asyncio.sleep(1)
        stage.mark("alias_moved")
        await asyncio.to_thread(move_champion, stage.endpoints.mlflow, version)
        stage.tell(f"champion -> {version}", style="bold")
        try:
            await asyncio.wait_for(asyncio.shield(stage.load.first_reply(version)), SERVED_WITHIN)
        except TimeoutError:
            raise SceneFailed(f"Version {version} did not answer within {SERVED_WITHIN:.0f} s") from None
        await asyncio.sleep(SWAPPED)
        return {"swap": {"from_version": "1", "to_version": version}}


def move_champion(registry: str, version: str) -> None:
    """Points the alias `champion` at a version."""
    from mlflow import MlflowClient  # noqa: PLC0415 - publishing has imported it by now

    MlflowClient(registry_uri=registry, tracking_uri=registry).set_registered_model_alias(
        MODEL, "champion", version
    )


async def roll_back(stage: Stage) -> pb.RollbackResponse:
    """Tells the control plane to go back; notes the mark `rollback`, and complains if a server did not."""
    async with grpc.aio.insecure_channel(stage.endpoints.control) as channel:
        # The generated stub is untyped.
        operator = OperatorStub(channel)  # type: ignore[no-untyped-call]
        await channel.channel_ready()
        stage.mark("rollback")
        stage.tell("hedgerow rollback " + MODEL, style="bold")
        try:
            reply: pb.RollbackResponse = await operator.Rollback(pb.RollbackRequest(model=MODEL), timeout=30)
        except grpc.aio.AioRpcError as error:
            raise SceneFailed(f"Rollback failed: {error.code().name}: {error.details()}") from error
    stage.tell(
        f"Back from {reply.from_version} to {reply.to_version}; the last server stopped answering"
        f" from {reply.from_version} after {reply.seconds * 1000:.0f} ms"
    )
    stage.expect(reply.complete, f"The rollback was not acknowledged by every server: {reply.detail}")
    return reply


class Rollback:
    """One command back to version 1."""

    name = "rollback"
    title = "Roll back with one command, under load"

    async def run(self, stage: Stage) -> Contribution:
        """Reports what the control plane says about it."""
        reply = await roll_back(stage)
        stage.mark("rollback_acknowledged")
        await asyncio.sleep(AFTER)
        return {
            "rollback": {
                "from_version": reply.from_version,
                "to_version": reply.to_version,
                "complete": reply.complete,
                "acknowledged_ms": round(reply.seconds * 1000, 2),
            }
        }
