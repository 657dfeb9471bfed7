"""The tail of a server that stalls now and then: alone, and with a second attempt at a backup region."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from hedgerow_bench import counters, mlp, throughput, wire_load
from hedgerow_bench.contender import Contender, checked, over_grpc
from hedgerow_bench.pair import ROW
from hedgerow_bench.records import Records, curve_ms, percentiles_ms
from hedgerow_bench.reports import Rows, tell
from hedgerow_bench.spread import interleaved, ratios, spread
from hedgerow_bench.subject import MLP_SEED, own_server

#: What is compared; the first is what the others are held against.
ALONE, FIXED, ADAPTIVE = "not hedged", "hedged after 30 ms", "hedged, adaptive"
_BACKUP = "backup"


@dataclass(frozen=True, slots=True)
class Stalls:
    """What the primary suffers, and the load on it.

    Attributes:
        percent: Of its calls stall.
        milliseconds: For so long.
        rate: Requests per second, in open loop.
        transport: Of the servers.
    """

    percent: float
    milliseconds: float
    rate: float
    transport: str


async def measure(stalls: Stalls, loop: throughput.Loop) -> Rows:
    """A row for each way to serve: latency over all rounds, and what the backup got, as it counted."""
    async with AsyncExitStack() as exits:

        async def start(name: str, region: str, settings: Mapping[str, str]) -> Contender:
            subject = await exits.enter_async_context(
                own_server(
                    loop.directory / name.replace(" ", "-"),
                    transport=stalls.transport,
                    workers=1,
                    cores=loop.cores.server,
                    settings={"HEDGEROW_SERVER__REGION": region, **settings},
                )
            )
            inputs = {mlp.INPUT: ROW}
            return over_grpc(
                name, subject.target, subject.model, inputs, metrics=subject.metrics, pid=subject.pid
            )

        backup = await checked(await start(_BACKUP, "west", {}), mlp.answer(ROW, MLP_SEED))
        fault = {
            "HEDGEROW_FAULT__DELAY_PERCENT": f"{stalls.percent:g}",
            "HEDGEROW_FAULT__DELAY_MS": f"{stalls.milliseconds:g}",
        }
        address = backup.url.removeprefix("http://").partition("/")[0]
        hedging = {"HEDGEROW_HEDGE__BACKUPS": address, "HEDGEROW_HEDGE__AFTER_MS": "30"}
        adaptive = {"HEDGEROW_HEDGE__ADAPTIVE": "true"}
        contenders = [
            await start(ALONE, "east", fault),
            await start(FIXED, "east", {**fault, **hedging}),
            await start(ADAPTIVE, "east", {**fault, **hedging, **adaptive}),
        ]
        runs: dict[str, list[Records]] = {contender.name: [] for contender in contenders}
        extra = dict.fromkeys(runs, 0)
        busiest = 0.0
        for number, contender in interleaved(loop.rounds, contenders):
            before = await counters.read(backup.metrics)
            planned = wire_load.plan(
                contender,
                loop.directory,
                f"hedge-{number}",
                loop.cores,
                rate=stalls.rate,
                seconds=loop.warm_up + loop.seconds,
                seed=number,
            )
            outcome = await wire_load.carry_out(planned, loop.cores)
            after = await counters.read(backup.metrics)
            records = outcome.records
            busiest = max(busiest, outcome.cpu)
            # Of the whole run, the first seconds too: the budget holds from the first request on.
            extra[contender.name] += (after.statuses - before.statuses).total()
            runs[contender.name].append(
                records.window(float(records.scheduled[0]) + loop.warm_up, float("inf"))
            )
            tail = percentiles_ms(runs[contender.name][-1].latency)
            tell(f"round {number + 1}/{loop.rounds}, {contender.name}: p99.9 {tail['p99_9']:.1f} ms")
    return [_row(name, runs, extra[name], busiest, stalls, loop) for name in runs]


def _row(
    name: str,
    runs: Mapping[str, list[Records]],
    extra: int,
    cpu: float,
    stalls: Stalls,
    loop: throughput.Loop,
) -> dict[str, Any]:
    tails = {who: [percentiles_ms(each.latency)["p99_9"] for each in mine] for who, mine in runs.items()}
    latency = np.concatenate([records.latency for records in runs[name]])
    # With the seconds that are left out above, as the backup counted them, too.
    sent = len(latency) * (loop.warm_up + loop.seconds) / loop.seconds
    return {
        "server": name,
        "stalled_percent": stalls.percent,
        "stall_ms": stalls.milliseconds,
        "rate": stalls.rate,
        "requests": len(latency),
        "failed": sum(records.failed for records in runs[name]),
        "latency_ms": percentiles_ms(latency),
        "curve_ms": curve_ms(latency),
        "p99_9_ms": spread(tails[name]),
        "times_shorter": None if name == ALONE else ratios(tails[ALONE], tails[name]),
        "at_backup": extra,
        "extra_percent": 100 * extra / sent,
        "generator_cpu": cpu,
    }
