"""A small model's latency while a large one is loaded and dropped, and what that leaves in memory."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
from hedgerow_protos import open_inference_pb2 as oip

from hedgerow_bench import latency, mlp, models, procfs, wire_load
from hedgerow_bench.contender import Contender, checked, over_grpc
from hedgerow_bench.cores import Cores, moved
from hedgerow_bench.load import Load
from hedgerow_bench.pair import HEDGEROW, ROW
from hedgerow_bench.records import Records, percentiles_ms
from hedgerow_bench.reports import Rows, tell
from hedgerow_bench.subject import MLP_SEED, own_server

_SMALL, _LARGE = "mlp", "large"
#: A load may take this long: the server tries the model in a process of its own first.
_LOAD_SECONDS = 120.0
#: Memory is given back some time after a version was dropped.
_SETTLE_SECONDS = 5.0
#: The first requests of a load open connections, and what they wait for is no one's quiet.
_WARM_SECONDS = 1.0
_SERVICE = "/inference.GRPCInferenceService"


@dataclass(frozen=True, slots=True)
class Cycle:
    """How the large model is loaded and dropped.

    Attributes:
        times: How often.
        megabytes: Of its weights.
        quiet: Seconds under load without any loading, before and after.
        share: Of the server's capacity in open loop that the small model's requests use.
        directory: For files.
        cores: Of server and load.
        transport: Of the server.
        rate: Requests a second, in place of that share.
    """

    times: int
    megabytes: int
    quiet: float
    share: float
    directory: Path
    cores: Cores
    transport: str
    rate: float | None = None


async def measure(cycle: Cycle, kinds: tuple[str, ...] = ("external", "embedded")) -> Rows:
    """A row for each kind of file: weights in a file of their own, or inside the ONNX file."""
    return [await _one(cycle, kind) for kind in kinds]


async def _one(cycle: Cycle, kind: str) -> dict[str, Any]:
    small = cycle.directory / "mlp.onnx"
    mlp.write(small, MLP_SEED)
    large = cycle.directory / f"large-{kind}" / "model.onnx"
    # The server must know the name from its start, and have loaded nothing large before: the file
    # is a small one first. A load reads what the file holds then.
    _remove(large)
    mlp.write(large, MLP_SEED)
    token = secrets.token_hex(16)
    try:
        async with (
            own_server(
                cycle.directory,
                transport=cycle.transport,
                workers=1,
                models={_SMALL: small, _LARGE: large},
                cores=cycle.cores.server,
                settings={"HEDGEROW_SERVER__OPERATOR_TOKEN": token},
            ) as subject,
            # One for all loads: opening others would keep the load generator's core busy.
            grpc.aio.insecure_channel(subject.target) as channel,
        ):
            await _repository(channel, token, "RepositoryModelUnload")
            await asyncio.to_thread(models.write_large, large, cycle.megabytes, external=kind == "external")
            tell(f"{kind}: a model of {cycle.megabytes} MB is written")
            contender = await checked(
                over_grpc(
                    HEDGEROW,
                    subject.target,
                    _SMALL,
                    {mlp.INPUT: ROW},
                    metrics=subject.metrics,
                    pid=subject.pid,
                ),
                mlp.answer(ROW, MLP_SEED),
            )
            # Who asks for loads takes nothing of the server's core either.
            with moved(cycle.cores.load):
                return {"weights": kind} | await _under_load(
                    cycle, kind, subject.pid, partial(_repository, channel, token), contender
                )
    finally:
        _remove(large)


async def _under_load(
    cycle: Cycle, kind: str, pid: int, ask: Callable[[str], Awaitable[None]], contender: Contender
) -> dict[str, Any]:
    capacity = await latency.capacity(contender, min(2.0, cycle.quiet), cycle.directory, cycle.cores)
    rate = capacity * cycle.share if cycle.rate is None else cycle.rate
    longest = _WARM_SECONDS + 2 * cycle.quiet + _SETTLE_SECONDS + cycle.times * 45.0
    planned = wire_load.plan(
        contender, cycle.directory, f"loads-{kind}", cycle.cores, rate=rate, seconds=longest
    )
    took = []
    async with Load(planned, cores=cycle.cores.load) as load:
        await asyncio.sleep(max(0.0, load.started - time.monotonic()) + _WARM_SECONDS)
        used, since = procfs.cpu_seconds_of_family(pid), time.monotonic()
        await asyncio.sleep(cycle.quiet)
        quiet_cpu = (procfs.cpu_seconds_of_family(pid) - used) / (time.monotonic() - since)
        before = Memory.of(pid)
        began = time.monotonic()
        for number in range(cycle.times):
            start = time.monotonic()
            await ask("RepositoryModelLoad")
            took.append(time.monotonic() - start)
            await ask("RepositoryModelUnload")
            tell(f"{kind}: loaded and dropped {number + 1}/{cycle.times}, {took[-1] * 1000:,.0f} ms")
        ended = time.monotonic()
        await asyncio.sleep(_SETTLE_SECONDS)
        after = Memory.of(pid)
        await asyncio.sleep(cycle.quiet)
        outcome = await load.finish(early=True)
    records = outcome.records
    quiet = _join(
        records.window(load.started + _WARM_SECONDS, began), records.window(ended + _SETTLE_SECONDS, np.inf)
    )
    busy = records.window(began, ended)
    at_rest, meanwhile = percentiles_ms(quiet), percentiles_ms(busy.latency)
    return {
        "megabytes": cycle.megabytes,
        "cycles": cycle.times,
        "rate": round(rate, 1),
        "load": rate / capacity,
        "capacity": round(capacity, 1),
        "requests": len(records),
        "failed": records.failed,
        "statuses": records.summary()["statuses"],
        # Of one core, which half of the requests that a server can answer may take nearly whole.
        "quiet_cpu": quiet_cpu,
        "quiet_ms": at_rest,
        "loading_ms": meanwhile,
        "p99_ratio": meanwhile["p99"] / at_rest["p99"],
        "load_took_ms": percentiles_ms(np.asarray(took)),
        "resident_before": before.resident,
        "resident_after": after.resident,
        "resident_ratio": after.resident / before.resident,
        "anonymous_before": before.anonymous,
        "anonymous_after": after.anonymous,
        "generator_cpu": outcome.cpu,
        "generator_was_the_limit": latency.was_late(busy.latency, busy.lag),
    }


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a server and its workers that lie in memory; pages that they share count for each.

    Attributes:
        resident: All of them.
        anonymous: Those of their own. What is over is of files, in the page cache.
    """

    resident: int
    anonymous: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """As it is now."""
        family = procfs.family(pid)
        return cls(
            sum([process.resident_bytes for process in family]),
            sum([process.anonymous_bytes for process in family]),
        )


def _join(*parts: Records) -> Any:
    return np.concatenate([part.latency for part in parts])


def _remove(large: Path) -> None:
    for path in (large, large.with_name(large.name + ".data")):
        path.unlink(missing_ok=True)


async def _repository(channel: grpc.aio.Channel, token: str, method: str) -> None:
    """Loads or unloads the large model."""
    request = (
        oip.RepositoryModelLoadRequest(model_name=_LARGE)
        if method.endswith("Load")
        else oip.RepositoryModelUnloadRequest(model_name=_LARGE)
    )
    call: Any = channel.unary_unary(f"{_SERVICE}/{method}")
    await call(
        request.SerializeToString(),
        timeout=_LOAD_SECONDS,
        metadata=(("authorization", f"Bearer {token}"),),
    )
